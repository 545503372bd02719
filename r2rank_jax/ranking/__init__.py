"""Plackett-Luce rankings: density, sampling, metrics, expected NDCG, gradient estimators, credit."""

from r2rank_jax.ranking.credit import item_advantages
from r2rank_jax.ranking.estimators import surrogate
from r2rank_jax.ranking.expectation import expected_ndcg, swapped_expected_ndcg
from r2rank_jax.ranking.metrics import (
    dcg,
    discounts,
    has_relevant,
    hit_rate,
    ndcg,
    normalized_gains,
    recall,
    reciprocal_rank,
)
from r2rank_jax.ranking.plackett_luce import log_prob, log_prob_per_place, mode, sample

__all__ = [
    "dcg",
    "discounts",
    "expected_ndcg",
    "has_relevant",
    "hit_rate",
    "item_advantages",
    "log_prob",
    "log_prob_per_place",
    "mode",
    "ndcg",
    "normalized_gains",
    "recall",
    "reciprocal_rank",
    "sample",
    "surrogate",
    "swapped_expected_ndcg",
]
