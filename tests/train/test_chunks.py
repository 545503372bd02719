"""Reading some items at a time gives the gradient of reading all of them, and that of prompts that share nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import ComputeConfig, MeshConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.model.counting import BatchShape
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.sharding import abstract_params, make_mesh, replicated, to_mesh
from r2rank_jax.train.memory.activations import residual_bytes
from r2rank_jax.train.memory.chunk_choice import GIB, choose_chunks
from r2rank_jax.train.rl_step import assess, rl_gradients
from r2rank_jax.train.sft_step import sft_gradients
from tests.support.tiny_models import QWEN3 as TWO_LAYERS
from tests.support.tiny_models import make_batch, make_params
from tests.support.training_steps import at_once

QWEN3 = dataclasses.replace(TWO_LAYERS, layers=1)  # compiles in half the time
STOP = 3


def configured(mesh=None, remat="none", model=QWEN3, compute=None, **rl):
    """QK-norm and untied embeddings; an estimator that compiles fast."""
    return RunConfig(
        name="test",
        mesh=mesh or MeshConfig(),
        model=dataclasses.replace(model, remat=remat),
        compute=compute or ComputeConfig(),
        data=dataclasses.replace(RunConfig(name="x").data, rationale_tokens=4),
        sft=SFTConfig(batch_users=8),
        rl=RLConfig(batch_users=8, estimator="pl_rank", credit="leave_item_out", **rl),
        evaluation=dataclasses.replace(RunConfig(name="x").evaluation, batch_users=8),
    )


def inputs(config, users, groups):
    batch, rationales = make_batch(config.model, users=users, items=5, groups=groups)
    labels = np.zeros((users, 5), np.float32)
    labels[np.arange(users), np.arange(users) % 4] = 1.0
    return dataclasses.replace(batch, labels=jnp.asarray(labels)), rationales


def rl_update(config, params, reference, batch):
    """Gradient and metrics of the last update after a rollout, the policy having moved from its reference."""
    mesh = make_mesh(config.mesh)
    # Programs with collectives that wait side by side can keep eight devices on two cores from ever meeting.
    params, reference, batch = jax.block_until_ready((params, reference, batch))
    rollout = jax.block_until_ready(make_rollout(mesh, config, STOP)(params, batch, jax.random.key(7)))

    def update(params, reference, batch, rollout):
        assessment = assess(mesh, config, params, reference, batch, rollout)
        if config.rl.updates > 1:  # the second update: the policy is no longer the one that wrote
            params = jax.tree.map(lambda p: 1.02 * p, params)
        return rl_gradients(mesh, config, params, reference, batch, rollout, assessment, jax.random.key(1))

    return jax.jit(update)(params, reference, batch, rollout)


def assert_same(found, expected, tolerance=1e-5):
    for (path, a), b in zip(jax.tree.leaves_with_path(found[0]), jax.tree.leaves(expected[0]), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) + 1e-9, jax.tree_util.keystr(path)
    for name in set(expected[1]) - {"logp_gap"}:  # rounding itself
        np.testing.assert_allclose(found[1][name], expected[1][name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunk_items", "remat", "updates", "ratio", "score_reads"),
    [(1, "none", 1, "token", "context"), (2, "block", 2, "sequence", "words")],
)
def test_rl_gradients_do_not_depend_on_the_chunk(monkeypatch, chunk_items, remat, updates, ratio, score_reads):
    model = dataclasses.replace(QWEN3, score_reads=score_reads)
    settings = {"updates": updates, "ratio": ratio, "entropy_weight": 0.1, "model": model}
    config = configured(**settings)
    params, reference = make_params(QWEN3), make_params(QWEN3, seed=4)
    batch, _ = inputs(config, users=2, groups=2)
    expected = rl_update(config, params, reference, batch)
    assert all(np.linalg.norm(leaf) > 0 for leaf in jax.tree.leaves(expected[0])), "every parameter must take part"
    at_once(monkeypatch, chunk_items)
    assert_same(rl_update(configured(remat=remat, **settings), params, reference, batch), expected)


@pytest.mark.slow
def test_sft_gradients_do_not_depend_on_the_chunk(monkeypatch):
    config = configured()
    params, (batch, rationales) = make_params(QWEN3), inputs(configured(), users=2, groups=1)
    step = lambda: jax.jit(lambda p: sft_gradients(make_mesh(config.mesh), config, p, batch, rationales))(params)  # noqa: E731
    expected = step()
    at_once(monkeypatch, 2)
    assert_same(step(), expected)


@pytest.mark.slow
def test_chunks_in_bfloat16_differ_by_its_rounding_only(monkeypatch):
    model = dataclasses.replace(QWEN3, dtype="bfloat16")
    params, (batch, rationales) = make_params(QWEN3), inputs(configured(), users=2, groups=1)
    config = configured(model=model)
    step = lambda: jax.jit(lambda p: sft_gradients(make_mesh(config.mesh), config, p, batch, rationales))(params)  # noqa: E731
    whole = step()
    at_once(monkeypatch, 2)
    chunks = step()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(chunks[0]))
    for (path, a), b in zip(jax.tree.leaves_with_path(chunks[0]), jax.tree.leaves(whole[0]), strict=True):
        assert np.linalg.norm(a - b) <= 0.02 * np.linalg.norm(b), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_chunks_on_eight_devices_equal_all_at_once_on_one(monkeypatch):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    model = dataclasses.replace(QWEN3, vocabulary=48, score_reads="words")
    params, reference = make_params(model), make_params(model, seed=4)
    batch, _ = inputs(configured(), users=8, groups=2)
    batch = dataclasses.replace(batch, prefix=batch.prefix % 48, suffix=batch.suffix % 48)
    expected = rl_update(configured(model=model), params, reference, batch)
    at_once(monkeypatch, 2)
    devices = make_mesh(mesh)
    split = to_mesh(devices, jax.tree.map(np.asarray, batch))
    whole = [jax.device_put(p, replicated(devices)) for p in (params, reference)]
    assert_same(rl_update(configured(mesh=mesh, model=model), *whole, split), expected)  # type: ignore[call-arg]


@pytest.mark.slow
def test_chunks_on_a_tensor_axis_alone_equal_all_at_once_on_one_device(monkeypatch):
    """No other axis: there are no sums over users."""
    model = dataclasses.replace(QWEN3, vocabulary=48)
    params, (batch, rationales) = make_params(model), inputs(configured(model=model), users=2, groups=1)
    batch = dataclasses.replace(batch, prefix=batch.prefix % 48, suffix=batch.suffix % 48)
    rationales = dataclasses.replace(rationales, tokens=rationales.tokens % 48)

    def step(config):
        mesh = make_mesh(config.mesh)
        split = jax.tree.map(lambda x: x.sharding, abstract_params(mesh, model))
        return jax.jit(lambda p: sft_gradients(mesh, config, p, batch, rationales))(jax.device_put(params, split))

    expected = step(configured(model=model))
    at_once(monkeypatch, 2)
    assert_same(step(configured(mesh=MeshConfig(tensor=2), model=model)), expected)


def with_budget(model, gib):
    return configured(model=model, remat=model.remat, compute=ComputeConfig(update_gib=gib))


def recomputes(choice):
    return choice.model.remat == "block"


def test_chunks_are_filled_up_with_as_little_as_can_be():
    """A chunk of 19 of 20 items would read 38."""
    batch, rationales = make_batch(QWEN3, users=1, items=20, groups=1)
    sizes = set()
    for kib in range(20, 600, 5):
        choice = choose_chunks(with_budget(QWEN3, kib / 2**20), batch, rationales)
        chunks = -(-20 // choice.chunk_items)
        assert chunks * choice.chunk_items - 20 < chunks
        sizes.add(choice.chunk_items)
    assert {1, 2, 7, 10, 20} <= sizes, sizes


@pytest.mark.slow
def test_a_smaller_budget_gives_smaller_chunks_and_then_recomputes():
    deep = dataclasses.replace(QWEN3, layers=4)
    batch, rationales = make_batch(deep, users=2, items=20, groups=4, prefix=200, suffix=50, said=100)
    on_gpu = lambda gib: choose_chunks(with_budget(deep, gib), batch, rationales, platform="gpu")  # noqa: E731
    gibs = (10, 0.4, 0.2, 0.1, 0.05, 0.02, 1e-6)
    choices = [on_gpu(gib) for gib in gibs]
    assert choices[0].chunk_items == 20 and not recomputes(choices[0])
    chunks = [choice.chunk_items for choice in choices if not recomputes(choice)]
    assert chunks == sorted(chunks, reverse=True) and len(set(chunks)) > 1
    assert any(recomputes(choice) and choice.chunk_items > 1 for choice in choices), choices
    assert choices[-1].chunk_items == 1, "what does not fit is tried one item at a time"
    for choice, gib in zip(choices[:-1], gibs):
        assert choice.activation_bytes <= gib * GIB
    forced = dataclasses.replace(deep, remat="block")
    assert recomputes(choose_chunks(with_budget(forced, 10), batch, rationales))
    # XLA for CPU recomputes in a loop over layers only.
    on_cpu = lambda model: choose_chunks(with_budget(model, 0.05), batch, rationales)  # noqa: E731
    assert not recomputes(on_cpu(deep)) and recomputes(on_cpu(dataclasses.replace(deep, layers=8)))


@pytest.mark.slow
def test_each_policy_keeps_less_than_the_one_before():
    deep = dataclasses.replace(QWEN3, layers=8)
    shape = BatchShape(users=2, prefix=64, suffix=16, length=32, items=8, rationales=2)
    none, dots, block = (
        residual_bytes(dataclasses.replace(deep, remat=name), shape) for name in ("none", "dots", "block")
    )
    assert block < 0.7 * dots and dots < 0.7 * none, (none, dots, block)


@pytest.mark.slow
def test_the_estimate_is_near_what_xla_allocates():
    """Within an eighth, where activations and not parameters fill the memory; two items at a time."""
    gib = 0.04
    sizes = {"width": 64, "layers": 6, "heads": 4, "kv_heads": 2, "head_size": 16, "mlp_width": 192, "vocabulary": 64}
    config = configured(model=dataclasses.replace(QWEN3, **sizes))
    config = dataclasses.replace(config, compute=ComputeConfig(update_gib=gib))
    batch, rationales = make_batch(config.model, users=2, items=8, groups=1, prefix=128, suffix=32, said=64)
    choice = choose_chunks(config, batch, rationales)
    step = jax.jit(lambda p: sft_gradients(make_mesh(config.mesh), config, p, batch, rationales)[0])
    allocated = step.lower(make_params(config.model)).compile().memory_analysis().temp_size_in_bytes
    assert choice.chunk_items == 2 and not recomputes(choice)
    assert 0.875 < choice.activation_bytes / allocated < 1.125, (choice, allocated)
