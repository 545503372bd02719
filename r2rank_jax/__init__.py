"""Reasoning to Rank in JAX: reason about each item, score the rationale, rank with Plackett-Luce, learn from NDCG.

Importing the package imports nothing else, so that `r2rank_jax.ranking` stays a light, pure library.
"""

__version__ = "0.1.0"
