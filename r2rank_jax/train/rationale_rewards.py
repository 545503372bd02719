"""Rewards of a rationale itself, in addition to the reward of its list: for being cut off, or for being too long.

They are off by default. `rl.rationale_rewards` is a weighted sum of names, such as "0.1*cut_off+0.02*too_long@12" or
"0.1*my_rewards:mentions_history". With them RL maximizes, on average over lists,

    V(s) + Σ_i r(rationale of item i),

whose gradient with respect to the policy adds to each rationale's advantage

    r(o_{i,g}) − mean over g' ≠ g of r(o_{i,g'}).

The other rationales of the item do not depend on this one, so the baseline leaves the estimate unbiased (Kool, van Hoof
and Welling 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"). With one rationale per item there is no
baseline. The score part of the gradient stays as it is: scores do not enter these rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import jax.numpy as jnp

from r2rank_jax.config import RLConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.ranking.names import function_named, weighted_names
from r2rank_jax.types import Array, Rationales


class RationaleReward(Protocol):
    """Rationales [U, N, G] -> float32 [U, N, G]; a pure function of `tokens`, `length` and `stopped`."""

    def __call__(self, rationales: Rationales) -> Array: ...


def cut_off(rationales: Rationales) -> Array:
    """−1 for a rationale that reached T tokens without stopping."""
    return -(~rationales.stopped).astype(jnp.float32)


def too_long(limit: int | None) -> RationaleReward:
    """−1 for each token of a rationale after the first `limit`, the stop token included."""
    if limit is None:
        raise ValueError('too_long needs a number of tokens; got none; write "too_long@12"')

    def reward(rationales: Rationales) -> Array:
        return -jnp.maximum(rationales.length - limit, 0).astype(jnp.float32)

    return reward


# Each takes the number after @, or None where there is none.
BY_NAME: Mapping[str, Callable[[int | None], RationaleReward]] = {
    "cut_off": lambda _: cut_off,
    "too_long": too_long,
}


def rationale_rewards_of(rl: RLConfig) -> RationaleReward | None:
    """The weighted sum that `rl.rationale_rewards` names; None where it is empty.

    "module:function" names a function of the form of `RationaleReward`; "module:function@12" one that takes the number
    and returns such a function.

    Raises:
        ConfigError: another form, or an unknown name.
    """
    if not rl.rationale_rewards:
        return None
    parts: list[tuple[float, RationaleReward]] = []
    try:
        for weight, name, number in weighted_names(rl.rationale_rewards, "it", "too_long@12"):
            named = function_named(name, BY_NAME, "a reward of rationales")
            part = named if name not in BY_NAME and number is None else named(number)
            if not callable(part):
                raise ValueError(f"{name} must be a function of rationales; got {type(part).__name__}; name another")
            parts.append((weight, part))
    except Exception as error:  # a function of the user can raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"rl.rationale_rewards: {kind}{' '.join(str(error).split())}") from error

    def total(rationales: Rationales) -> Array:
        return sum((weight * part(rationales) for weight, part in parts), jnp.zeros(rationales.length.shape))

    return total


def centered(rewards: Array, mask: Array) -> Array:
    """Rewards minus their mean over the other rationales of the same item.

    Args:
        rewards: float32 [U, N, G]; with G = 1 they stay as they are.
        mask: bool [U, N].

    Returns:
        float32 [U, N, G], 0 at masked items.
    """
    real, count = mask[:, :, None], rewards.shape[2]
    rewards = jnp.where(real, rewards, 0.0)
    if count > 1:
        rewards = (rewards - jnp.mean(rewards, axis=2, keepdims=True)) * (count / (count - 1))
    return rewards
