"""Plackett-Luce rankings: density, sampling, metrics, rewards and their expectation, gradient estimators, credit."""

from r2rank_jax.ranking.credit import item_advantages, leave_item_out, swap
from r2rank_jax.ranking.estimators import surrogate
from r2rank_jax.ranking.exact.replacement import swapped_expected_ndcg
from r2rank_jax.ranking.expectation import expected_ndcg, expected_reward
from r2rank_jax.ranking.losses import (
    Loss,
    approx_ndcg,
    lambda_rank,
    list_mle,
    list_net,
    negative_expected_ndcg,
    softmax_cross_entropy,
)
from r2rank_jax.ranking.metrics import (
    average_precision,
    dcg,
    has_relevant,
    hit_rate,
    ndcg,
    normalized_gains,
    recall,
    reciprocal_rank,
)
from r2rank_jax.ranking.plackett_luce import (
    entropy,
    kl,
    log_prob,
    log_prob_per_place,
    mode,
    rank_marginals,
    sample,
)
from r2rank_jax.ranking.reward import Reward, Term, discounts, ranking_reward

__all__ = [
    "Loss",
    "Reward",
    "Term",
    "approx_ndcg",
    "average_precision",
    "dcg",
    "discounts",
    "entropy",
    "expected_ndcg",
    "expected_reward",
    "has_relevant",
    "hit_rate",
    "item_advantages",
    "kl",
    "lambda_rank",
    "leave_item_out",
    "list_mle",
    "list_net",
    "log_prob",
    "log_prob_per_place",
    "mode",
    "ndcg",
    "negative_expected_ndcg",
    "normalized_gains",
    "rank_marginals",
    "ranking_reward",
    "recall",
    "reciprocal_rank",
    "sample",
    "softmax_cross_entropy",
    "surrogate",
    "swap",
    "swapped_expected_ndcg",
]
