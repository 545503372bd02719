"""How systems are compared: metrics per user, baselines, intervals and paired tests, `results.json`."""
