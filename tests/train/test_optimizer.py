"""Weight decay, the head's learning rate, clipping and schedules, on parameters that were chosen by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from r2rank_jax.config import MeshConfig, OptimizerConfig
from r2rank_jax.model.transformer import initial_params
from r2rank_jax.sharding import make_mesh
from r2rank_jax.train.state import (
    abstract_state,
    apply_gradients,
    decays,
    fresh_state,
    learning_rate,
    make_optimizer,
    start_from,
)
from r2rank_jax.train.trainable import split_params
from tests.support.tiny_models import QWEN2

ADAPTED = dataclasses.replace(QWEN2, layers=1, lora_rank=2, qk_norm=True, tied_embeddings=False)
AT_ONCE = OptimizerConfig(learning_rate=0.1, warmup_steps=0, schedule="constant", clip_norm=0)


def ones():
    shapes = meta.unbox(jax.eval_shape(lambda: initial_params(ADAPTED, jax.random.key(0))))
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


def paths(tree, chosen):
    return {jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(tree) if chosen(path, leaf)}


def one_step(params, grads, settings):
    optimizer = make_optimizer(settings, 10)
    return jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p)[0])(params, grads)


def test_without_gradient_only_matrices_adapters_and_the_head_decay():
    params = ones()
    updates = one_step(params, jax.tree.map(jnp.zeros_like, params), dataclasses.replace(AT_ONCE, weight_decay=0.5))
    moved = paths(updates, lambda path, leaf: bool(jnp.any(leaf != 0)))
    layer = "['layers']"
    attention = {f"{layer}['attention']['{name}{end}']" for name in "qkvo" for end in ("", "_a", "_b")}
    mlp = {f"{layer}['mlp']['{name}{end}']" for name in ("gate", "up", "down") for end in ("", "_a", "_b")}
    assert moved == attention | mlp | {"['lm_head']", "['score_head']"}
    np.testing.assert_allclose(updates["score_head"], -0.1 * 0.5, rtol=1e-6)
    kept = paths(params, lambda path, leaf: not decays(path))
    assert any("embedding" in name for name in kept) and any("bias" in name for name in kept)
    assert sum("norm" in name for name in kept) == 5


def test_the_head_moves_at_its_own_rate_and_nothing_else_does():
    params = grads = ones()
    settings = dataclasses.replace(AT_ONCE, weight_decay=0.1)
    plain = one_step(params, grads, settings)
    faster = one_step(params, grads, dataclasses.replace(settings, head_learning_rate=1.0))
    np.testing.assert_allclose(faster.pop("score_head"), 10 * plain.pop("score_head"), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, faster, plain)


def test_a_norm_of_zero_turns_clipping_off():
    params = {"score_head": jnp.zeros(2)}
    huge = {"score_head": jnp.array([3e3, 4e3])}

    def second_moment(clip_norm):
        optimizer = make_optimizer(OptimizerConfig(clip_norm=clip_norm), 10)
        _, (adam, *_) = optimizer.update(huge, optimizer.init(params), params)[1]
        return np.asarray(adam.nu["score_head"])

    np.testing.assert_allclose(second_moment(0), 0.01 * np.array([9e6, 16e6]), rtol=1e-5)
    np.testing.assert_allclose(second_moment(1), 0.01 * np.array([0.36, 0.64]), rtol=1e-5)


@pytest.mark.parametrize("trained", ["all", "adapters", "head"])
def test_no_setting_changes_the_structure_of_the_state(trained):
    """A checkpoint of plain AdamW, as older versions wrote it, restores under every setting."""
    params = split_params(trained, ones())[0]
    older = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1.0), weight_decay=0.1))
    structure = jax.tree.structure(older.init(params))
    for changes in ({}, {"clip_norm": 0}, {"weight_decay": 0.1, "head_learning_rate": 1.0}, {"schedule": "constant"}):
        settings = dataclasses.replace(OptimizerConfig(), **changes)
        assert jax.tree.structure(make_optimizer(settings, 10).init(params)) == structure


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["all", "adapters"])
def test_a_skipped_update_neither_decays_nor_moves_the_head(trained):
    settings = dataclasses.replace(AT_ONCE, weight_decay=0.5, head_learning_rate=1.0)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    model = ADAPTED if trained == "adapters" else dataclasses.replace(ADAPTED, lora_rank=0)
    state = fresh_state(mesh, model, settings, 10, seed=0, trained=trained)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), split_params(trained, state.params)[0])
    after, metrics = apply_gradients(state, grads, make_optimizer(settings, 10), 0.0, trained)
    assert metrics["skipped"] == 1 and after.step == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, after.optimizer, state.optimizer)
    like = abstract_state(mesh, model, settings, 10, trained)
    assert jax.tree.structure(like) == jax.tree.structure(start_from(after, after.params))


def test_the_cosine_is_the_one_of_earlier_versions():
    for warmup, steps in ((20, 100), (0, 5), (5, 5), (1, 1)):
        ours = learning_rate(OptimizerConfig(warmup_steps=warmup), steps)
        clamped = min(warmup, steps - 1)
        theirs = optax.warmup_cosine_decay_schedule(0.0, 3e-3, clamped, max(steps, clamped + 1))
        assert [float(ours(step)) for step in range(steps)] == [float(theirs(step)) for step in range(steps)]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("warmup_stable_decay", [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 0.5, 0, 0]),
    ],
)
def test_schedules_by_hand(schedule, rates):
    rate = learning_rate(OptimizerConfig(learning_rate=1, warmup_steps=2, schedule=schedule), 10)
    np.testing.assert_allclose([float(rate(step)) for step in range(12)], rates, atol=1e-6)


def test_which_schedules_extend_cleanly():
    """Of runs of 60 and of 120 steps, the rates of the first steps are equal as far as the docstring says."""

    def common(schedule):
        settings = OptimizerConfig(warmup_steps=50, schedule=schedule)
        short, long = (learning_rate(settings, steps) for steps in (60, 120))
        return [float(short(step)) == float(long(step)) for step in range(60)]

    assert all(common("constant"))
    assert all(common("warmup_stable_decay")[:50]) and not any(common("warmup_stable_decay")[51:])
    assert not all(common("cosine"))
