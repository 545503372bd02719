"""Work of training and ranking, counted; and RL's control: how many further steps of SFT are as much work as RL.

Work is counted, not timed: wall time contains compilation, validation and whatever else the machine was doing. The
counts are those of docs/performance.md, with every segment at its longest and without recomputation.
"""

from __future__ import annotations

from r2rank_jax.config import RunConfig
from r2rank_jax.model.counting import BatchShape, forward_flops, update_flops


def steps_of_same_work(sft: RunConfig, rl: RunConfig, *, traced_items: int) -> int:
    """The number of SFT steps with as many floating point operations as RL's steps.

    Args:
        sft: configuration of the further steps, which may differ from that of SFT in how many lists a step has.
        rl: configuration of the RL phase.
        traced_items: N of the traced lists.
    """
    return max(1, round(rl.rl.steps * rl_step_flops(rl) / sft_step_flops(sft, traced_items=traced_items)))


def sft_step_flops(config: RunConfig, *, traced_items: int) -> float:
    """Floating point operations of a step of SFT: one update on traced lists, and on those of the critic."""
    shape = _shape(config, config.sft.batch_users, traced_items, 1)
    silent = _shape(config, config.sft.critic_users, config.data.candidate_items, 1)._replace(length=0)
    return sum(update_flops(config.model, lists, trained=config.trained) for lists in (shape, silent))


def rl_step_flops(config: RunConfig) -> float:
    """Floating point operations of a step of RL.

    A step is a rollout, a forward pass of the reference policy (and, from two updates on, of the policy), and its
    updates, each with the reference policy's logits for the KL term.
    """
    rl = config.rl
    shape = _shape(config, rl.batch_users, config.data.candidate_items, rl.rationales)
    forward, hidden = forward_flops(config.model, shape), forward_flops(config.model, shape, logits=False)
    rollout = forward
    assess = hidden + (forward if rl.updates > 1 else 0)
    updates = rl.updates * (update_flops(config.model, shape, trained=config.trained) + forward - hidden)
    return rollout + assess + updates


def ranking_flops(config: RunConfig, *, items: int, rationales: int) -> float:
    """Floating point operations of ranking one list of `items` candidates by `rationales` rationales of each."""
    return forward_flops(config.model, _shape(config, 1, items, rationales))


def _shape(config: RunConfig, users: int, items: int, rationales: int) -> BatchShape:
    data = config.data
    return BatchShape(
        users=users,
        prefix=data.prefix_tokens,
        suffix=data.suffix_tokens,
        length=data.rationale_tokens,
        items=items,
        rationales=rationales,
    )
