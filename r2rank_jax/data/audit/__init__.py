"""Checks that every prepared folder must pass.

The input is a prepared folder, read bucket by bucket. The output is findings, grouped by check: faults, warnings and
their counts.
"""
