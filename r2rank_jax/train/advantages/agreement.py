"""How much of a gradient is signal: what two halves of a batch agree on, for the token part and the score part.

Of two independent estimates g and h of a gradient, E[g·h] is the squared norm of what they estimate, so their cosine is
about the share of the signal in the squared norm of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from r2rank_jax.config import RunConfig
from r2rank_jax.rollout.decoding import Rollout
from r2rank_jax.train.rl_step import UPDATE, Assessment, rl_gradients
from r2rank_jax.train.state import TrainState
from r2rank_jax.types import Array, ListBatch, Params

# state, reference, batch, rollout, assessment -> gradient/PART_cosine and gradient/PART_norm, float32 []
Measure = Callable[[TrainState, Params, ListBatch, Rollout, Assessment], dict[str, Array]]


def make_agreement(mesh: Mesh, config: RunConfig) -> Measure:
    """A function that measures the two parts of the gradient of a step, each without the other, the KL and the entropy.

    The halves are the even and the odd lists of the batch. The norms are those of the whole batch, with the weights of
    the parts and before clipping; with `rl.fixed_scale` each half has lost its own common direction of the scores.
    """

    def of_half(part: str, place: int, state: TrainState, reference: Params, *inputs: Any) -> Params:
        weights: dict[str, Any] = {"score_weight": 0.0, "token_weight": 0.0, "kl_weight": 0.0, "entropy_weight": 0.0}
        weights[f"{part}_weight"] = getattr(config.rl, f"{part}_weight")
        alone = replace(config, rl=replace(config.rl, **weights))
        batch, rollout, assessment = jax.tree.map(lambda x: x[place::2] if x.ndim else x, inputs)
        key = jax.random.fold_in(state.key(), UPDATE)
        return rl_gradients(mesh, alone, state.params, reference, batch, rollout, assessment, key)[0]

    @jax.jit
    def measure(state: TrainState, reference: Params, *inputs: Any) -> dict[str, Array]:
        found = {}
        for part in ("token", "score"):
            even, odd = (of_half(part, place, state, reference, *inputs) for place in (0, 1))
            norms = optax.tree.norm(even) * optax.tree.norm(odd)
            product = jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, even, odd))
            found[f"gradient/{part}_cosine"] = product / jnp.where(norms > 0, norms, 1.0)
            found[f"gradient/{part}_norm"] = optax.tree.norm(jax.tree.map(lambda a, b: (a + b) / 2, even, odd))
        return found

    return measure
