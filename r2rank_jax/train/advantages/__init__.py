"""Advantages: judged by a critic instead of sampled labels, and without the gain of spreading all scores."""
