"""Every backend computes what "einsum" computes: values and gradients."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.errors import ConfigError
from r2rank_jax.model.attention import Segment, _cudnn, _einsum, _splash, attend

# Name -> (U, KV, N, G, L, Q/KV, H) of the queries, and (N|1, G|1, C) of the segments before them: lengths odd and even,
# below and above a block of 128; heads grouped and not.
CASES = {
    "prefix": ((2, 1, 1, 1, 131, 1, 8), []),
    "items": ((2, 2, 3, 1, 4, 1, 8), [(1, 1, 130)]),
    "rationales": ((2, 2, 3, 2, 5, 2, 8), [(1, 1, 6), (3, 1, 3)]),
    "even": ((2, 1, 2, 2, 4, 3, 16), [(1, 1, 5), (2, 2, 3)]),
}
BACKENDS = {
    "cudnn": partial(_cudnn, implementation="xla"),
    "splash": partial(_splash, interpret=True),
}


def problem(case, dtype=jnp.float32, seed=0):
    """Queries and segments, right-padded to every length; the last user's last row and its context are all padding."""
    shape, before = CASES[case]
    users, kv_heads, items, forks, length, _, size = shape
    rng = np.random.default_rng(seed)
    q = jnp.asarray(rng.normal(size=shape), dtype)
    segments = []
    for n, g, c in [*before, (items, forks, length)]:
        k, v = (jnp.asarray(rng.normal(size=(users, kv_heads, n, g, c, size)), dtype) for _ in range(2))
        lengths = rng.integers(1, c + 1, (users, n, g))
        lengths[0, 0, 0], lengths[-1, -1, -1] = c, 0
        segments.append(Segment(k.swapaxes(-1, -2), v, jnp.asarray(np.arange(c) < lengths[..., None])))
    return q, segments


def with_gradients(compute, q, segments, weight):
    """The output, and the gradient of its weighted sum by all queries, keys and values."""
    valid = [s.valid for s in segments]

    @jax.jit
    def both(q, kv):
        def loss(q, kv):
            *context, own = [Segment(k, v, real) for (k, v), real in zip(kv, valid)]
            out = compute(q, context, own)
            return jnp.sum(out.astype(jnp.float32) * weight), out

        gradients, out = jax.grad(loss, (0, 1), has_aux=True)(q, kv)
        return out, gradients

    return both(q, [(s.k, s.v) for s in segments])


def query_mask(q, own):
    """True at the queries that are real, shaped like outputs."""
    return jnp.broadcast_to(own.valid[:, None, :, :, :, None, None], q.shape)


@cache
def einsum(case):
    """Weights of the outputs, zero on padding, and what is expected."""
    q, segments = problem(case)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32) * query_mask(q, segments[-1])
    return weight, with_gradients(_einsum, q, segments, weight)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_equal_einsum(backend, case):
    q, segments = problem(case)
    weight, (expected, expected_gradients) = einsum(case)
    found, gradients = with_gradients(BACKENDS[backend], q, segments, weight)
    assert found.shape == q.shape and found.dtype == q.dtype
    real = query_mask(q, segments[-1])
    np.testing.assert_allclose(jnp.where(real, found, 0), jnp.where(real, expected, 0), atol=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients)):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert jnp.abs(a).max() > 0.01


@pytest.mark.parametrize("backend", ["einsum", *BACKENDS])
def test_padding_is_finite_and_no_real_token_sees_it(backend):
    q, segments = problem("rationales")
    compute = BACKENDS.get(backend, _einsum)
    out, gradients = with_gradients(compute, q, segments, jnp.ones(q.shape))  # padding's own outputs count, too
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((out, gradients)))

    def spoil(x, valid):
        return jnp.where(valid[:, None, ..., None], x, 100.0)

    spoiled = [
        Segment(spoil(s.k.swapaxes(-1, -2), s.valid).swapaxes(-1, -2), spoil(s.v, s.valid), s.valid) for s in segments
    ]
    real = query_mask(q, segments[-1])
    again = jax.jit(compute)(q, spoiled[:-1], spoiled[-1])
    np.testing.assert_allclose(jnp.where(real, again, 0), jnp.where(real, out, 0), atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "einsum", "cudnn", "splash"])
def test_one_token_is_decoded_by_einsum_whatever_the_backend(backend):
    """The kernels themselves would refuse: this is float32 on a CPU."""
    q, (*context, own) = problem("rationales")
    q, own = q[:, :, :, :, :1], Segment(own.k[..., :1], own.v[:, :, :, :, :1], own.valid[..., :1])
    np.testing.assert_array_equal(attend(backend, q, context, own), _einsum(q, context, own))


def test_refusals_name_what_is_needed_what_came_and_the_remedy():
    q, (*context, own) = problem("rationales")
    with pytest.raises(ValueError, match="auto, einsum, cudnn or splash, got 'flash'"):
        attend("flash", q, context, own)
    with pytest.raises(ConfigError, match=r"float16 or bfloat16, got float32; set model.dtype to bfloat16"):
        attend("cudnn", q, context, own)
    for size in (12, 264):
        wide = jnp.zeros((*q.shape[:-1], size), jnp.bfloat16)
        with pytest.raises(ConfigError, match=rf"multiple of 8 and at most 256 .*, got {size}; set model.attention"):
            attend("cudnn", wide, context, own)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_cudnn_itself_equals_einsum_in_bfloat16(case):
    """On a GPU: `JAX_PLATFORMS=cuda pytest -m gpu tests/model/test_attention.py`; without it tests run on CPUs."""
    q, segments = problem(case, jnp.bfloat16)
    weight = query_mask(q, segments[-1]).astype(jnp.float32)
    exact = [Segment(s.k.astype(jnp.float32), s.v.astype(jnp.float32), s.valid) for s in segments]
    expected = with_gradients(_einsum, q.astype(jnp.float32), exact, weight)
    found = with_gradients(partial(attend, "cudnn"), q, segments, weight)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1])):
        assert jnp.isfinite(a).all()
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.06, rtol=0.03)
    np.testing.assert_allclose(found[0].astype(jnp.float32) * weight, expected[0] * weight, atol=0.03, rtol=0.02)
