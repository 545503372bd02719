"""What a configuration's names of objectives stand for: the reward of a list, the loss of the head in SFT.

Names are looked up where they are used; a run calls `check` first, so that a wrong one is refused before work begins.
"""

from __future__ import annotations

from r2rank_jax.config import RLConfig, RunConfig, SFTConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.ranking import reward
from r2rank_jax.ranking.losses import BY_NAME, Loss
from r2rank_jax.ranking.names import function_named
from r2rank_jax.train.rationale_rewards import rationale_rewards_of


def check(config: RunConfig) -> None:
    """Raise `ConfigError` where a configuration names an objective that is not there."""
    reward_of(config.rl)
    rationale_rewards_of(config.rl)
    head_loss_of(config.sft)


def reward_of(rl: RLConfig) -> reward.Reward:
    """The reward that `rl.reward` names.

    Raises:
        ConfigError: see `ranking.reward.named`.
    """
    try:
        return reward.named(rl.reward)
    except Exception as error:  # a function of the user can raise anything
        raise ConfigError(_reason("rl.reward", error)) from error


def head_loss_of(sft: SFTConfig) -> Loss:
    """The loss that `sft.head_loss` names: one of `ranking.losses`, or "module:function" of the same form.

    Raises:
        ConfigError: no such loss.
    """
    try:
        loss = function_named(sft.head_loss, BY_NAME, "sft.head_loss")
    except Exception as error:  # importing a module of the user can raise anything
        raise ConfigError(_reason("sft.head_loss", error)) from error
    if not callable(loss):
        raise ConfigError(f"sft.head_loss must name a function, got {sft.head_loss!r}, a {type(loss).__name__}")
    return loss


def _reason(field: str, error: Exception) -> str:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"{field}: {kind}{' '.join(str(error).split())}"
