"""The step of SFT and what both steps share: on eight devices as on one, and doing what its losses say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import MeshConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.ranking.losses import BY_NAME
from r2rank_jax.sharding import make_mesh, to_mesh
from r2rank_jax.train.sft_step import head_loss, make_sft_step, sft_gradients
from r2rank_jax.train.state import apply_gradients, fresh_state, make_optimizer, start_from
from tests.support.tiny_models import make_batch
from tests.support.training_steps import MESHES, STEPS, local_batches, make_config


@functools.cache
def train_sft(mesh_config):
    config = make_config(mesh_config)
    mesh = make_mesh(config.mesh)
    state = fresh_state(mesh, config.model, config.sft.optimizer, STEPS, seed=0)
    step = make_sft_step(mesh, config)
    losses = []
    for local in local_batches(config):
        state, metrics = step(state, *to_mesh(mesh, local))
        losses.append(jax.device_get(metrics))
    return state, losses


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=["data8", "fsdp8", "data2fsdp2tensor2"])
def test_sft_on_eight_devices_equals_one(mesh):
    one, eight = train_sft(MeshConfig()), train_sft(mesh)
    if mesh.fsdp > 1:
        assert not eight[0].params["embedding"].sharding.is_fully_replicated, "the test must split parameters"
    for a, b in zip(one[1], eight[1]):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    # Adam divides by the root of tiny second moments, so parameters agree less tightly than losses.
    for a, b in zip(jax.tree.leaves(one[0].policy), jax.tree.leaves(eight[0].policy)):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_sft_on_two_slices_equals_one(monkeypatch):
    """The devices of a slice need not be adjacent: here slices alternate, so the rows of a batch go elsewhere."""

    def alternating(slices, devices):
        return [list(devices[i::slices]) for i in range(slices)]

    monkeypatch.setattr("r2rank_jax.sharding.grouped_by_slice", alternating)
    config = MeshConfig(data=4, fsdp=2, slices=2)
    assert [device.id for device in make_mesh(config).devices.ravel()] == [0, 2, 4, 6, 1, 3, 5, 7]
    one, two = train_sft(MeshConfig()), train_sft(config)
    for a, b in zip(one[1], two[1]):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_sft_learns_its_traces():
    losses = [float(m["loss"]) for m in train_sft(MeshConfig())[1]]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_step():
    config = make_config(MeshConfig())
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.sft.optimizer, 10)
    state = fresh_state(mesh, config.model, config.sft.optimizer, 10, seed=0)
    state = dataclasses.replace(state, average=jax.tree.map(lambda x: x + 1.0, state.params))
    bad = jax.tree.map(jnp.zeros_like, state.params)
    bad["score_head"] = bad["score_head"].at[0].set(jnp.nan)
    after, metrics = apply_gradients(state, bad, optimizer, 0.9)
    assert metrics["skipped"] == 1 and int(after.step) == 1
    before = dataclasses.replace(state, step=after.step)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_starting_from_other_parameters_shares_no_buffer():
    config = make_config(MeshConfig())
    mesh = make_mesh(config.mesh)
    state = fresh_state(mesh, config.model, config.sft.optimizer, 10, seed=0)
    begun = start_from(state, state.params)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.params, begun.params, begun.average))]
    assert len(set(pointers)) == len(pointers)


def lists(scores, labels, mask):
    """Scores [U, N, G=1] and the part of a batch that a loss of scores reads."""
    batch = make_batch(make_config(MeshConfig()).model, users=2, items=3, groups=1, seed=0)[0]
    batch = dataclasses.replace(batch, labels=jnp.asarray(labels, jnp.float32), mask=jnp.asarray(mask, bool))
    return jnp.asarray(scores, jnp.float32)[..., None], batch


def test_head_loss_by_hand():
    """The default, a cross-entropy between shares; a list without a relevant item weighs nothing, as a masked item."""
    scores, batch = lists([[1, 2, 99], [0, 0, 0]], [[0, 1, 1], [0, 0, 0]], [[1, 1, 0], [1, 1, 1]])
    found = head_loss(BY_NAME["list_net"], scores, batch, None)
    np.testing.assert_allclose(found, np.log(1 + np.exp(-1.0)), rtol=1e-6)
    scores, batch = lists([[1, 2, 0], [0, 0, 1]], [[2, 0, 2], [0, 3, 1]], np.ones((2, 3)))
    logs = np.array(scores[..., 0]) - np.log(np.exp(scores[..., 0]).sum(1, keepdims=True))
    want = -np.mean([(logs[0, 0] + logs[0, 2]) / 2, 0.75 * logs[1, 1] + 0.25 * logs[1, 2]])
    np.testing.assert_allclose(head_loss(BY_NAME["list_net"], scores, batch, None), want, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "list_net"])
def test_any_loss_of_the_ranking_package_trains_the_head(name):
    config = make_config(MeshConfig())
    config = dataclasses.replace(config, sft=dataclasses.replace(config.sft, head_loss=name))
    mesh = make_mesh(config.mesh)
    params = fresh_state(mesh, config.model, config.sft.optimizer, STEPS, seed=0).params
    batch, rationales = to_mesh(mesh, next(local_batches(config)))
    step = jax.jit(lambda p, key: sft_gradients(mesh, config, p, batch, rationales, key))
    grads, metrics = step(params, jax.random.key(0))
    assert np.isfinite(metrics["loss"]) and float(jnp.abs(grads["score_head"]).max()) > 1e-4
    _, other = step(params, jax.random.key(1))
    # Half of the lists have two relevant items, whose order ListMLE draws.
    assert (float(metrics["head_loss"]) != float(other["head_loss"])) == (name == "list_mle")


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(ConfigError, match="needs 16 devices, found 8"):
        make_mesh(MeshConfig(data=16))
    with pytest.raises(ConfigError, match=r"sft.batch_users=8 must be divisible by mesh.data x mesh.fsdp = 3"):
        make_config(MeshConfig(data=3))
