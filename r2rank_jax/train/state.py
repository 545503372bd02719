"""The train state: parameters, optimizer state, parameter average and PRNG root, initialized directly on the mesh."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.core import meta
from jax.sharding import Mesh

from r2rank_jax.config import ModelConfig, OptimizerConfig, Trained
from r2rank_jax.model.transformer import initial_params
from r2rank_jax.sharding import abstract, by_logical_axes
from r2rank_jax.train.trainable import join_params, split_params
from r2rank_jax.types import Array, Params


@struct.dataclass
class TrainState:
    """Everything that a training step reads and writes."""

    step: Array  # int32 []   updates done
    root: Array  # uint32 [2] key data; step s uses fold_in(root, s), so no other random state is stored
    params: Params
    optimizer: Any
    average: Params | None  # exponential moving average of the parameters; None = off

    @property
    def policy(self) -> Params:
        """The parameters that are evaluated and passed to the next phase."""
        return self.params if self.average is None else self.average

    def key(self) -> Array:
        """The PRNG key of this step."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.root), self.step)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm. The learning rate warms up linearly, then decays to zero at `steps` as a
    cosine."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mu_dtype=config.moment_dtype,
        ),
    )


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of each update."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))


def fresh_state(
    mesh: Mesh, model: ModelConfig, config: OptimizerConfig, steps: int, seed: int, trained: Trained = "all"
) -> TrainState:
    """A new train state, initialized shard by shard."""
    boxed = jax.eval_shape(lambda: _fresh(model, config, steps, seed, trained))
    make = jax.jit(
        lambda: meta.unbox(_fresh(model, config, steps, seed, trained)), out_shardings=by_logical_axes(mesh, boxed)
    )
    return make()


def abstract_state(
    mesh: Mesh, model: ModelConfig, config: OptimizerConfig, steps: int, trained: Trained = "all"
) -> TrainState:
    """Shapes, dtypes and shardings of a train state."""
    boxed = jax.eval_shape(lambda: _fresh(model, config, steps, 0, trained))
    return abstract(boxed, by_logical_axes(mesh, boxed))


def start_from(state: TrainState, params: Params) -> TrainState:
    """A fresh state that starts from other parameters.

    The parameters are copied: a state is donated to its step, so none of its leaves may share a buffer with another
    leaf or with a reference policy.
    """
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    return replace(state, params=jax.tree.map(jnp.copy, params), average=average)


def _fresh(model: ModelConfig, config: OptimizerConfig, steps: int, seed: int, trained: Trained) -> TrainState:
    root = jax.random.key(seed)
    params = initial_params(model, jax.random.fold_in(root, 2**31 - 1))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        root=jax.random.key_data(root),
        params=params,
        optimizer=make_optimizer(config, steps).init(split_params(trained, params)[0]),
        average=params if config.ema_decay else None,
    )


def apply_gradients(
    state: TrainState,
    grads: Params,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    trained: Trained = "all",
) -> tuple[TrainState, dict[str, Array]]:
    """Update the trainable parameters. Gradients that are not finite change only the step; "skipped" counts them.

    `optax.apply_if_finite` is not used, because it applies the bad update after its limit of consecutive failures.
    """
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    trainable, frozen = split_params(trained, state.params)
    updates, new_optimizer = optimizer.update(grads, state.optimizer, trainable)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)  # noqa: E731
    params = join_params(keep(optax.apply_updates(trainable, updates), trainable), frozen)
    average = state.average
    if average is not None:
        # The decay is smaller in the first steps, so that the average of a short run is not mostly the initial policy.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        average = keep(jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, params), average)
    state = replace(
        state, step=state.step + 1, params=params, optimizer=keep(new_optimizer, state.optimizer), average=average
    )
    return state, {"grad_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32)}
