"""Random lists compared with rax, scikit-learn and ranx, each under its own documented conventions.

| library      | gain                           | ties in the scores                       | no relevant item |
|--------------|--------------------------------|------------------------------------------|------------------|
| rax          | 2^label − 1                    | input order, or at random with a key     | 0                |
| scikit-learn | the label as it is             | averaged over all orders (ignore_ties=F) | 0                |
| ranx         | `ndcg`: label, `_burges`: 2^ −1| input order of its stable sort           | 0                |
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
import rax
from sklearn.metrics import ndcg_score

from r2rank_jax.ranking import (
    average_precision,
    hit_rate,
    lambda_rank,
    list_mle,
    mode,
    ndcg,
    recall,
    reciprocal_rank,
    softmax_cross_entropy,
)

SHAPE, K = (40, 12), 5


@pytest.fixture(scope="module")
def lists():
    """Scores without ties, graded labels, mask."""
    rng = np.random.default_rng(11)
    scores, labels = rng.normal(size=SHAPE).astype(np.float32), rng.choice(4, p=[0.6, 0.2, 0.1, 0.1], size=SHAPE)
    mask = rng.random(SHAPE) > 0.2
    mask[:, 0] = True
    labels[3], labels[4, 1:], labels[4, 0] = 0, 0, 1
    return scores, labels.astype(np.float32), mask


@pytest.mark.parametrize(
    ("metric", "peer"),
    [
        (ndcg, rax.ndcg_metric),
        (reciprocal_rank, rax.mrr_metric),
        (recall, rax.recall_metric),
        (average_precision, rax.ap_metric),
    ],
)
@pytest.mark.parametrize("k", [None, K])
def test_metrics_equal_rax(lists, metric, peer, k):
    scores, labels, mask = lists
    ours = jax.jit(lambda s, y, m: metric(mode(s, m), y, m, k=k))
    theirs = jax.jit(lambda s, y, m: peer(s, y, where=m, topn=k, reduce_fn=None))
    if metric is average_precision and k is not None:
        # rax counts relevant masked items in the precision matrix's denominator; without a mask both agree.
        mask = np.ones_like(mask)
    np.testing.assert_allclose(ours(scores, labels, mask), theirs(scores, labels, mask), atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "peer"),
    [(softmax_cross_entropy, rax.softmax_loss), (list_mle, rax.listmle_loss)],
)
def test_losses_and_gradients_equal_rax(lists, loss, peer):
    scores, labels, mask = lists
    relevant = (labels * mask).any(-1)
    ours = jax.jit(jax.value_and_grad(lambda s: loss(s, labels, mask).sum()))(scores)
    theirs = jax.jit(jax.value_and_grad(lambda s: (peer(s, labels, where=mask, reduce_fn=None) * relevant).sum()))(
        scores
    )
    for got, want in zip(ours, theirs):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=5e-6)
    assert (np.asarray(ours[1])[~relevant] == 0).all()  # for such lists rax's ListMLE learns the input order


def test_lambda_rank_equals_rax_up_to_its_scale(lists):
    """rax multiplies its weights by the list size N, and normalizes by the ideal DCG of the *gains* as labels. Its loss
    is therefore computed without normalization and then divided by N and by the ideal DCG of each list."""
    scores, labels, mask = lists
    ours = jax.jit(jax.vmap(jax.value_and_grad(lambda_rank)))(scores, labels, mask)
    weigh = lambda s, y, **options: rax.dcg_lambdaweight(s, y, **options) / SHAPE[-1]  # noqa: E731
    theirs = jax.jit(
        jax.vmap(
            jax.value_and_grad(
                lambda s, y, m: rax.pairwise_logistic_loss(s, y, where=m, lambdaweight_fn=weigh, reduce_fn=np.sum)
            )
        )
    )(scores, labels, mask)
    gains = np.where(mask, 2.0**labels - 1, 0.0)
    ideal = -np.sort(-gains, axis=-1) @ (1 / np.log2(np.arange(2, SHAPE[-1] + 2)))
    ideal = np.where(ideal > 0, ideal, 1.0)
    np.testing.assert_allclose(ours[0], theirs[0] / ideal, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1] / ideal[:, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [None, K])
def test_linear_ndcg_equals_scikit_learn(lists, k):
    scores, labels, _ = lists
    ours = ndcg(mode(scores), labels, k=k, gain="linear")
    theirs = [ndcg_score(y[None], s[None], k=k, ignore_ties=True) for s, y in zip(scores, labels)]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_tied_ndcg_averages_to_scikit_learns():
    """scikit-learn averages over the orders of tied items; ours draws one of them if it gets a key."""
    scores, labels = np.float32([1, 1, 1]), np.float32([0, 0, 1])
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: ndcg(mode(scores, key=key), labels, gain="linear"))(keys))
    want = ndcg_score(labels[None], scores[None])  # type: ignore[index]
    np.testing.assert_allclose(want, 0.71031, atol=1e-5)
    assert abs(drawn.mean() - want) < 4 * drawn.std() / np.sqrt(4000)
    assert ndcg(mode(scores), labels, gain="linear") == 0.5  # input order


@pytest.mark.slow
def test_metrics_equal_ranx(lists, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # a second in Python instead of 45 in its compiler
    ranx = pytest.importorskip("ranx", reason="pip install 'r2rank-jax[dev]'")
    scores, labels, _ = lists
    relevant = labels.any(-1)  # ranx wants at least one judged item per query
    scores, labels = scores[relevant], labels[relevant].astype(int)
    qrels = {f"q{u}": {f"d{i}": int(y) for i, y in enumerate(row) if y > 0} for u, row in enumerate(labels)}
    run = {f"q{u}": {f"d{i}": float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)}
    names = [f"ndcg@{K}", f"ndcg_burges@{K}", f"mrr@{K}", f"recall@{K}", f"hit_rate@{K}", f"map@{K}", "map"]
    theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), names, return_mean=False)
    ranking = mode(scores)
    ours = [
        ndcg(ranking, labels, k=K, gain="linear"),
        ndcg(ranking, labels, k=K),
        reciprocal_rank(ranking, labels, k=K),
        recall(ranking, labels, k=K),
        hit_rate(ranking, labels, k=K),
        average_precision(ranking, labels, k=K),
        average_precision(ranking, labels),
    ]
    order = np.argsort([f"q{u}" for u in range(len(scores))])  # ranx returns queries sorted by name
    for name, mine in zip(names, ours):
        np.testing.assert_allclose(np.asarray(mine)[order], theirs[name], atol=1e-6, err_msg=name)
