"""Systems that a language model must beat: counts, neighbors, linear models, factorization, a sequence model.

None of them takes a label. A system is fitted to training interactions (`inputs.TrainingData`) and scores the
candidates of lists (`inputs.UnlabeledLists`) from what precedes each list's positive. `systems` names them with their
grids, and `tuning.tune` chooses a setting on the validation lists and scores the test lists.

This package exports what needs no training. The other systems are imported from their modules, because they import Flax
and Optax, which reading results does not need.
"""

from r2rank_jax.evaluation.baselines.counts import analytic_random, popularity_scores, random_scores
from r2rank_jax.evaluation.baselines.item_knn import item_knn_scores

__all__ = ["analytic_random", "item_knn_scores", "popularity_scores", "random_scores"]
