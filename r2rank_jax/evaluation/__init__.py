"""Comparison of systems: metrics per user, baselines, intervals and paired tests, `results.json`."""
