"""What two halves of a batch agree on: equal halves wholly, and the parts of the gradient add up to the whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r2rank_jax.config import MeshConfig, RLConfig, RunConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.sharding import make_mesh, to_mesh
from r2rank_jax.train.advantages.agreement import make_agreement
from r2rank_jax.train.rl_step import UPDATE, make_rl_steps, rl_gradients
from r2rank_jax.train.state import fresh_state
from tests.support.training_steps import STEPS, STOP, local_batches, make_config


def step_of(config, *, twice=False):
    """The inputs of a step; with `twice`, every list of the first half of the batch stands there twice in a row."""
    mesh = make_mesh(config.mesh)
    state = fresh_state(mesh, config.model, config.rl.optimizer, STEPS, seed=0)
    batch = next(local_batches(config))[0]
    if twice:
        batch = jax.tree.map(lambda x: np.repeat(x[:4], 2, axis=0), batch)
    batch = to_mesh(mesh, batch)
    rollout = make_rollout(mesh, config, STOP)(state.params, batch, jax.random.key(0))
    if twice:  # also the same rationales
        rollout = jax.tree.map(lambda x: jnp.repeat(x[::2], 2, axis=0), rollout)
    assess, _ = make_rl_steps(mesh, config)
    return mesh, state, (state.params, batch, rollout, assess(state.params, state.params, batch, rollout))


@pytest.mark.slow
def test_the_parts_add_up_to_the_gradient_and_their_norms_are_those_of_the_whole_batch():
    config = make_config(MeshConfig(), kl_weight=0.3, entropy_weight=0.1, token_weight=2.0, fixed_scale=False)
    mesh, state, inputs = step_of(config)
    found = make_agreement(mesh, config)(state, *inputs)
    assert set(found) == {f"gradient/{part}_{what}" for part in ("token", "score") for what in ("cosine", "norm")}
    key = jax.random.fold_in(state.key(), UPDATE)
    for part, others in (("token", {"score_weight": 0.0}), ("score", {"token_weight": 0.0})):
        rl = dataclasses.replace(config.rl, kl_weight=0.0, entropy_weight=0.0, **others)
        alone = dataclasses.replace(config, rl=rl)
        grads, _ = jax.jit(functools.partial(rl_gradients, mesh, alone))(state.params, *inputs, key)
        np.testing.assert_allclose(found[f"gradient/{part}_norm"], optax.tree.norm(grads), rtol=1e-4)
        assert -1 < float(found[f"gradient/{part}_cosine"]) < 0.999, "the halves are of different lists"


@pytest.mark.slow
def test_equal_halves_agree_and_a_part_without_weight_has_no_gradient():
    config = make_config(MeshConfig(), token_weight=0.0)
    mesh, state, inputs = step_of(config, twice=True)
    found = make_agreement(mesh, config)(state, *inputs)
    np.testing.assert_allclose(found["gradient/score_cosine"], 1.0, rtol=1e-5)
    assert float(found["gradient/token_cosine"]) == float(found["gradient/token_norm"]) == 0


def test_a_batch_that_cannot_be_halved_is_refused():
    with pytest.raises(ConfigError, match=r"divisible by 2 x mesh.data x mesh.fsdp = 8, got 12"):
        RunConfig(name="x", mesh=MeshConfig(data=4), rl=RLConfig(batch_users=12, gradients_every=10))
