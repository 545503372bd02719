"""The programs of SFT and RL that `runs/` compiles, lowered from shapes instead of data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from r2rank_jax.config import RunConfig
from r2rank_jax.rollout.decoding import Rollout
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.sharding import abstract_lists, abstract_params, users
from r2rank_jax.train.rl_step import Assessment, make_rl_steps
from r2rank_jax.train.sft_step import make_sft_step
from r2rank_jax.train.state import abstract_state
from r2rank_jax.types import Rationales


def lowered_sft(mesh: Mesh, config: RunConfig) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Trace and lower the step of SFT."""
    state = abstract_state(mesh, config.model, config.sft.optimizer, config.sft.steps, config.trained)
    batch = abstract_lists(mesh, config, config.sft.batch_users)
    rationales = abstract_rationales(mesh, config, config.sft.batch_users, 1)
    critics = config.sft.critic_users
    lists = abstract_lists(mesh, config, critics) if critics else None
    yield "sft step", make_sft_step(mesh, config).lower(state, batch, rationales, lists)  # type: ignore[attr-defined]


def lowered_rl(mesh: Mesh, config: RunConfig) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Lower the rollout's largest programs and both halves of RL's step, one at a time as they are requested."""
    rl = config.rl
    state = abstract_state(mesh, config.model, rl.optimizer, rl.steps * rl.updates, config.trained)
    batch = abstract_lists(mesh, config, rl.batch_users)
    # Shapes do not depend on the stop token.
    rollout_fn = make_rollout(mesh, config, 0)
    yield from rollout_fn.lower_largest(state.params, batch).items()
    reference = abstract_params(mesh, config.model)
    assess, update = make_rl_steps(mesh, config)
    rollout, assessment = abstract_rollout(mesh, config)
    yield "rl assess", assess.lower(state.params, reference, batch, rollout)  # type: ignore[attr-defined]
    yield "rl update", update.lower(state, reference, batch, rollout, assessment)  # type: ignore[attr-defined]


def abstract_rationales(mesh: Mesh | AbstractMesh, config: RunConfig, batch_users: int, rationales: int) -> Rationales:
    """Shapes, dtypes and shardings of [U, N, G, T] rationales."""
    rows = (batch_users, config.data.candidate_items, rationales)
    return Rationales(
        tokens=_leaf(mesh, jnp.int32, *rows, config.data.rationale_tokens),
        length=_leaf(mesh, jnp.int32, *rows),
        stopped=_leaf(mesh, jnp.bool_, *rows),
    )


def abstract_rollout(mesh: Mesh | AbstractMesh, config: RunConfig) -> tuple[Rollout, Assessment]:
    """The rollout that RL passes to `assess`, and the assessment that it passes to `update`."""
    rl = config.rl
    rows = (rl.batch_users, config.data.candidate_items, rl.rationales)
    tokens = (*rows, config.data.rationale_tokens)
    rollout = Rollout(
        rationales=abstract_rationales(mesh, config, rl.batch_users, rl.rationales),
        logp=_leaf(mesh, jnp.float32, *tokens),
        scores=_leaf(mesh, jnp.float32, *rows),
    )
    return rollout, Assessment(
        old_logp=_leaf(mesh, jnp.float32, *tokens) if rl.updates > 1 else None,  # type: ignore[arg-type]
        reference_hidden=_leaf(mesh, jnp.dtype(config.model.dtype), *tokens, config.model.width),
        advantages=_leaf(mesh, jnp.float32, *rows),
        value=jax.ShapeDtypeStruct((), jnp.float32),  # type: ignore[arg-type]
    )


def _leaf(mesh: Mesh | AbstractMesh, dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=users(mesh))  # type: ignore[arg-type]
