"""Checks that every prepared folder must pass.

In comes a prepared folder, which is read bucket by bucket. Out come findings, grouped by check: faults, warnings and
their counts.
"""
