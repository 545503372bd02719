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
from r2rank_jax.model.adapters import INPUT_AXES, is_adapter
from r2rank_jax.model.transformer import initial_params
from r2rank_jax.sharding import abstract, by_logical_axes
from r2rank_jax.train.trainable import HEADS, join_params, split_params
from r2rank_jax.types import Array, Params

HEAD = "score_head"
MATRICES = {name for matrices in INPUT_AXES.values() for name in matrices} | {"lm_head", *HEADS}
"""Parameters that decay, besides adapters. The heads have no bias."""

DECAY_SHARE = 0.2
"""Last share of the steps of `warmup_stable_decay` in which the rate falls. With a fifth, Hägele et al. 2024 ("Scaling
laws and compute-optimal training beyond fixed training durations") match a cosine of the same length."""


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
    """AdamW after clipping by the global norm.

    The structure of its state does not depend on the settings, so a checkpoint can be restored under any of them.

    Args:
        config: the settings; `clip_norm` 0 turns clipping off.
        steps: number of updates, at which the schedule ends.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adamw = optax.chain(
        optax.scale_by_adam(b2=config.beta2, mu_dtype=config.moment_dtype),
        _by_parameter(config),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
    return optax.chain(clip, adamw)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of each update, of all parameters but a head with its own.

    The rate warms up linearly. What follows decides whether a finished run can be extended by more steps:

    - `constant`: yes. The rates of the first steps do not depend on `steps`, so the extended run equals a longer one.
    - `warmup_stable_decay`: from a checkpoint before the last fifth, yes. A finished run has decayed already; extended,
      it rises to the full rate again, which undoes the decay, and decays at its new end.
    - `cosine`: the rate jumps to where the longer cosine would be, although the steps before had lower rates.
    """
    warmup = config.warmup_steps
    if config.schedule != "constant":  # which must not depend on `steps`
        warmup = min(warmup, max(steps - 1, 0))
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))
    rise = optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1))
    stable = optax.constant_schedule(config.learning_rate)
    if config.schedule == "constant":
        return optax.join_schedules([rise, stable], [warmup])
    start = max(warmup, steps - max(round(DECAY_SHARE * steps), 1))
    fall = optax.linear_schedule(config.learning_rate, 0.0, max(steps - start, 1))
    return optax.join_schedules([rise, stable, fall], [warmup, start])


def decays(path: tuple[Any, ...]) -> bool:
    """Whether weight decay applies to the parameter at this path: matrices and adapters, but not norms, biases and
    embeddings, whose size is no measure of complexity."""
    name = path[-1].key
    return name in MATRICES or is_adapter(name)


def _by_parameter(config: OptimizerConfig) -> optax.GradientTransformation:
    """Add weight decay where it applies, and scale the head's update to its own learning rate.

    It has no state, as `optax.add_decayed_weights` without a mask, in whose place it stands.
    """
    head_scale = 1.0 if config.head_learning_rate is None else config.head_learning_rate / config.learning_rate

    def scaled(path: tuple[Any, ...], update: Array, param: Array) -> Array:
        if config.weight_decay and decays(path):
            update = update + config.weight_decay * param
        return head_scale * update if path[-1].key == HEAD and head_scale != 1 else update

    return optax.stateless(lambda updates, params: jax.tree.map_with_path(scaled, updates, params))


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
