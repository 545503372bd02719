"""Checks that every prepared folder must pass.

In comes a prepared folder, read bucket by bucket. Out come findings: faults, warnings and what was counted, by check.
"""
