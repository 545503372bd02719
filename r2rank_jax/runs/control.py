"""RL's control: how many further steps of SFT are as much work as RL."""

from __future__ import annotations

from r2rank_jax.config import RunConfig
from r2rank_jax.model.counting import BatchShape, forward_flops, update_flops


def steps_of_same_work(sft: RunConfig, rl: RunConfig, *, traced_items: int) -> int:
    """The number of SFT steps with as many floating point operations as RL's steps.

    Work is counted, not timed: wall time contains compilation, validation and whatever else the machine was doing. The
    counts are those of docs/performance.md, with every segment at its longest. A step of SFT is one update. A step of
    RL is a rollout, a forward pass of the reference policy (and, from two updates on, of the policy), and its updates,
    each with the reference policy's logits for the KL term. Recomputation is not counted.

    Args:
        sft: configuration of the SFT phase.
        rl: configuration of the RL phase.
        traced_items: N of the traced lists.
    """
    one_update = update_flops(sft.model, _shape(sft, sft.sft.batch_users, traced_items, 1), trained=sft.trained)
    one_update += _critic_flops(sft, sft.sft.critic_users)

    shape = _shape(rl, rl.rl.batch_users, rl.data.candidate_items, rl.rl.rationales)
    forward, hidden = forward_flops(rl.model, shape), forward_flops(rl.model, shape, logits=False)
    rollout = forward
    assess = hidden + (forward if rl.rl.updates > 1 else 0)
    if rl.rl.critic_share:
        assess += forward_flops(rl.model, shape._replace(length=0))
    updates = rl.rl.updates * (update_flops(rl.model, shape, trained=rl.trained) + forward - hidden)
    return max(1, round(rl.rl.steps * (rollout + assess + updates) / one_update))


def _critic_flops(config: RunConfig, users: int) -> float:
    shape = _shape(config, users, config.data.candidate_items, 1)._replace(length=0)
    return update_flops(config.model, shape, trained=config.trained)


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
