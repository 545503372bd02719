"""Which settings to change if a run does not fit into memory.

A ladder is a list of changes to one setting, from the smallest to the largest. The search combines a few ladders and
returns the smallest combination that, by a new estimate, fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from r2rank_jax.config import MeshConfig, RunConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.model.counting import BatchShape
from r2rank_jax.plan.devices import Topology
from r2rank_jax.plan.estimate import Estimate, estimate
from r2rank_jax.train.memory.activations import logits_bytes, on_one_device, residual_bytes
from r2rank_jax.train.memory.chunk_choice import GIB

# At most this many ladders are combined.
MAX_LADDERS = 3


class Change(NamedTuple):
    """One rung of a ladder: command-line flags, and the same change to a configuration."""

    flags: dict[str, str]
    apply: Callable[[RunConfig], RunConfig]


class Remedy(NamedTuple):
    """The smallest change that fits, and the next smaller one, which does not."""

    flags: dict[str, str]
    peak_bytes: int
    config: RunConfig
    short_flags: dict[str, str]  # one rung lower; empty if there is none
    short_peak_bytes: int


def nearest_remedy(current: Estimate, topology: Topology) -> Remedy | None:
    """Search for the fewest and cheapest changes that make the estimate fit.

    Args:
        current: an estimate that does not fit.
        topology: its devices must hold the run.

    Returns:
        The remedy, or None if no combination of up to three ladders fits.
    """
    ladders = list(_ladders(current))
    tried: dict[tuple[str, ...], Estimate | None] = {}

    def climb(rungs: tuple[Change, ...]) -> Estimate | None:
        name = tuple(f"{flag} {value}" for rung in rungs for flag, value in rung.flags.items())
        if name not in tried:
            config = current.config
            try:
                for rung in rungs:
                    config = rung.apply(config)
                tried[name] = estimate(config, topology)
            except ConfigError:  # an invalid combination
                tried[name] = None
        return tried[name]

    for together in range(1, MAX_LADDERS + 1):
        for chosen in itertools.combinations(ladders, together):
            top = climb(tuple(ladder[-1] for ladder in chosen))
            if top is None or top.peak > topology.device.memory_bytes:
                continue  # not even the largest changes fit
            steps = [range(len(ladder)) for ladder in chosen]
            for at in sorted(itertools.product(*steps), key=sum):
                rungs = tuple(ladder[i] for ladder, i in zip(chosen, at, strict=True))
                changed = climb(rungs)
                if changed is not None and changed.peak <= topology.device.memory_bytes:
                    return _remedy(current, rungs, changed, climb, chosen, at)
    return None


def _remedy(
    current: Estimate,
    rungs: tuple[Change, ...],
    changed: Estimate,
    climb: Callable[[tuple[Change, ...]], Estimate | None],
    chosen: tuple[list[Change], ...],
    at: tuple[int, ...],
) -> Remedy:
    """Add the next smaller change: one rung lower on the last ladder, or without that ladder at its first rung."""
    below = rungs[:-1] if at[-1] == 0 else (*rungs[:-1], chosen[-1][at[-1] - 1])
    short = climb(below) if below else current
    return Remedy(_flags(rungs), changed.peak, changed.config, _flags(below), (short or current).peak)


def _flags(rungs: tuple[Change, ...]) -> dict[str, str]:
    return {flag: value for rung in rungs for flag, value in rung.flags.items()}


def _ladders(current: Estimate) -> Iterator[list[Change]]:
    """All ladders, from the cheapest to the most expensive change."""
    config = current.config
    for ladder in (
        _smaller_chunks(current),
        _recomputing(current),
        _split_parameters(config.mesh),
        _half_precision(config),
        _short_moments(config),
        _fewer_users(config),
        _all_at_once(current),
        _split_heads(config),
        _adapters(config),
    ):
        rungs = list(ladder)
        if rungs:
            yield rungs


def _smaller_chunks(current: Estimate) -> Iterator[Change]:
    """Fewer items at a time. The only cost is smaller matrix products."""
    gib = max(current.sft.activation_bytes, current.rl.activation_bytes) / GIB
    while max(current.sft.chunk_items, current.rl.chunk_items) > 1 and gib > 0.05:
        gib = float(f"{gib / 2:.2g}")
        yield Change(
            {"--compute.update-gib": f"{gib:g}"},
            lambda c, gib=gib: replace(c, compute=replace(c.compute, update_gib=gib)),  # type: ignore[misc]
        )


def _recomputing(current: Estimate) -> Iterator[Change]:
    """Recompute layers: a third more work in the update."""
    if {current.sft.model.remat, current.rl.model.remat} != {"block"}:
        yield Change({"--model.remat": "block"}, lambda c: replace(c, model=replace(c.model, remat="block")))


def _split_parameters(mesh: MeshConfig) -> Iterator[Change]:
    """Split parameters along fsdp instead of copying them along data: more communication."""
    data, fsdp = mesh.data, mesh.fsdp
    while data % (2 * mesh.slices) == 0:  # the rest of the data axis crosses slices, which fsdp may not
        data, fsdp = data // 2, fsdp * 2
        yield _mesh(data=data, fsdp=fsdp)


def _half_precision(config: RunConfig) -> Iterator[Change]:
    if config.model.dtype != "bfloat16":
        yield Change({"--model.dtype": "bfloat16"}, lambda c: replace(c, model=replace(c.model, dtype="bfloat16")))


def _short_moments(config: RunConfig) -> Iterator[Change]:
    """Keep Adam's first moment in bfloat16."""
    if "float32" in (config.sft.optimizer.moment_dtype, config.rl.optimizer.moment_dtype):
        yield Change(
            {f"--{phase}.optimizer.moment-dtype": "bfloat16" for phase in ("sft", "rl")},
            lambda c: replace(
                c,
                sft=replace(c.sft, optimizer=replace(c.sft.optimizer, moment_dtype="bfloat16")),
                rl=replace(c.rl, optimizer=replace(c.rl.optimizer, moment_dtype="bfloat16")),
            ),
        )


def _all_at_once(current: Estimate) -> Iterator[Change]:
    """Read all items at once, so that parameters need not be gathered before a loop over chunks.

    The cost is that every layer is recomputed and has collectives.
    """
    config = current.config
    if config.mesh.fsdp == 1 or min(current.sft.chunk_items, current.rl.chunk_items) == config.data.candidate_items:
        return
    data, rl = config.data, config.rl
    local = replace(on_one_device(config.model, config.mesh.tensor), remat="block")
    users = max(config.sft.batch_users, rl.batch_users) // config.mesh.batch_shards
    sizes = data.prefix_tokens, data.suffix_tokens, data.rationale_tokens, data.candidate_items
    shape = BatchShape(users, *sizes, rl.rationales)
    size = residual_bytes(local, shape, config.trained) + logits_bytes(local, users, shape.rows * shape.length)
    gib = float(f"{size / GIB + 0.05:.1f}")
    yield Change(
        {"--compute.update-gib": f"{gib:g}", "--model.remat": "block"},
        lambda c: replace(c, compute=replace(c.compute, update_gib=gib), model=replace(c.model, remat="block")),
    )


def _adapters(config: RunConfig) -> Iterator[Change]:
    """Train adapters only. This is another experiment: the frozen backbone needs neither gradients nor moments."""
    if config.trained == "all":
        yield Change(
            {"--trained": "adapters", "--model.lora-rank": "16"},
            lambda c: replace(c, trained="adapters", model=replace(c.model, lora_rank=16)),
        )


def _fewer_users(config: RunConfig) -> Iterator[Change]:
    """Smaller batches: noisier gradients."""
    shards, sft, rl = config.mesh.batch_shards, config.sft.batch_users, config.rl.batch_users
    while max(sft, rl) > shards:
        sft, rl = (max(users // 2 // shards, 1) * shards for users in (sft, rl))
        yield Change(
            {"--sft.batch-users": str(sft), "--rl.batch-users": str(rl)},
            lambda c, sft=sft, rl=rl: replace(  # type: ignore[misc]
                c, sft=replace(c.sft, batch_users=sft), rl=replace(c.rl, batch_users=rl)
            ),
        )


def _split_heads(config: RunConfig) -> Iterator[Change]:
    """Move devices from the fsdp axis, then from the data axis, to tensor: collectives in every layer."""
    mesh, model = config.mesh, config.model
    data, fsdp, tensor = mesh.data, mesh.fsdp, mesh.tensor
    while fsdp % 2 == 0 or data % (2 * mesh.slices) == 0:
        tensor *= 2
        if model.heads % tensor:
            return
        data, fsdp = (data, fsdp // 2) if fsdp % 2 == 0 else (data // 2, fsdp)
        yield _mesh(data=data, fsdp=fsdp, tensor=tensor)


def _mesh(**axes: int) -> Change:
    return Change(
        {f"--mesh.{name}": str(size) for name, size in axes.items()},
        lambda c: replace(c, mesh=replace(c.mesh, **axes)),  # type: ignore[arg-type]
    )
