"""What to change where a run does not fit: ladders of changes, and the shortest climb that a new estimate confirms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from r2rank_jax.config import ConfigError, MeshConfig, RunConfig
from r2rank_jax.model.counting import Lists
from r2rank_jax.plan.devices import Topology
from r2rank_jax.plan.estimate import Estimate, estimate
from r2rank_jax.train.activation_memory import GIB, kept_bytes, logits_bytes, on_one_device

# Rungs of several ladders that are climbed together, at most.
TOGETHER = 3


class Change(NamedTuple):
    """One rung: flags as they would be typed, and what they make of a configuration."""

    flags: dict[str, str]
    apply: Callable[[RunConfig], RunConfig]


class Remedy(NamedTuple):
    """The nearest change that fits, and the one before it, which does not."""

    flags: dict[str, str]
    peak_bytes: int
    config: RunConfig
    short_flags: dict[str, str]  # a rung less; nothing where it was the first
    short_peak_bytes: int


def nearest_remedy(found: Estimate, topology: Topology) -> Remedy | None:
    """Search for the fewest and cheapest changes with which the estimate fits.

    Args:
        found: an estimate that does not.
        topology: where it has to.

    Returns:
        None where no climb of up to three ladders fits.
    """
    ladders = list(_ladders(found))
    tried: dict[tuple[str, ...], Estimate | None] = {}

    def climb(rungs: tuple[Change, ...]) -> Estimate | None:
        name = tuple(f"{flag} {value}" for rung in rungs for flag, value in rung.flags.items())
        if name not in tried:
            config = found.config
            try:
                for rung in rungs:
                    config = rung.apply(config)
                tried[name] = estimate(config, topology)
            except ConfigError:  # a combination that a configuration itself refuses
                tried[name] = None
        return tried[name]

    for together in range(1, TOGETHER + 1):
        for chosen in itertools.combinations(ladders, together):
            top = climb(tuple(ladder[-1] for ladder in chosen))
            if top is None or top.peak > topology.device.memory_bytes:
                continue  # not even at the top
            steps = [range(len(ladder)) for ladder in chosen]
            for at in sorted(itertools.product(*steps), key=sum):
                rungs = tuple(ladder[i] for ladder, i in zip(chosen, at, strict=True))
                there = climb(rungs)
                if there is not None and there.peak <= topology.device.memory_bytes:
                    return _remedy(found, rungs, there, climb, chosen, at)
    return None


def _remedy(
    found: Estimate,
    rungs: tuple[Change, ...],
    there: Estimate,
    climb: Callable[[tuple[Change, ...]], Estimate | None],
    chosen: tuple[list[Change], ...],
    at: tuple[int, ...],
) -> Remedy:
    """With the rung below: of the last ladder, or without it where this is its first."""
    below = rungs[:-1] if at[-1] == 0 else (*rungs[:-1], chosen[-1][at[-1] - 1])
    short = climb(below) if below else found
    return Remedy(_flags(rungs), there.peak, there.config, _flags(below), (short or found).peak)


def _flags(rungs: tuple[Change, ...]) -> dict[str, str]:
    return {flag: value for rung in rungs for flag, value in rung.flags.items()}


def _ladders(found: Estimate) -> Iterator[list[Change]]:
    """Changes from the cheapest to the dearest, each ladder from its least step to its largest."""
    config = found.config
    for ladder in (
        _smaller_chunks(found),
        _recomputing(found),
        _split_parameters(config.mesh),
        _half_precision(config),
        _short_moments(config),
        _fewer_users(config),
        _all_at_once(found),
        _split_heads(config),
        _adapters(config),
    ):
        rungs = list(ladder)
        if rungs:
            yield rungs


def _smaller_chunks(found: Estimate) -> Iterator[Change]:
    """Items at a time; costs nothing but the size of a matrix product."""
    gib = max(found.sft.activation_bytes, found.rl.activation_bytes) / GIB
    while max(found.sft.chunk_items, found.rl.chunk_items) > 1 and gib > 0.05:
        gib = float(f"{gib / 2:.2g}")
        yield Change(
            {"--compute.update-gib": f"{gib:g}"},
            lambda c, gib=gib: replace(c, compute=replace(c.compute, update_gib=gib)),  # type: ignore[misc]
        )


def _recomputing(found: Estimate) -> Iterator[Change]:
    """A third more work in the update."""
    if {found.sft.model.remat, found.rl.model.remat} != {"block"}:
        yield Change({"--model.remat": "block"}, lambda c: replace(c, model=replace(c.model, remat="block")))


def _split_parameters(mesh: MeshConfig) -> Iterator[Change]:
    """From copies along data to parts along fsdp: more communication."""
    data, fsdp = mesh.data, mesh.fsdp
    while data % 2 == 0:
        data, fsdp = data // 2, fsdp * 2
        yield _mesh(data=data, fsdp=fsdp)


def _half_precision(config: RunConfig) -> Iterator[Change]:
    if config.model.dtype != "bfloat16":
        yield Change({"--model.dtype": "bfloat16"}, lambda c: replace(c, model=replace(c.model, dtype="bfloat16")))


def _short_moments(config: RunConfig) -> Iterator[Change]:
    """Adam's first moment in half its bytes."""
    if "float32" in (config.sft.optimizer.moment_dtype, config.rl.optimizer.moment_dtype):
        yield Change(
            {f"--{phase}.optimizer.moment-dtype": "bfloat16" for phase in ("sft", "rl")},
            lambda c: replace(
                c,
                sft=replace(c.sft, optimizer=replace(c.sft.optimizer, moment_dtype="bfloat16")),
                rl=replace(c.rl, optimizer=replace(c.rl.optimizer, moment_dtype="bfloat16")),
            ),
        )


def _all_at_once(found: Estimate) -> Iterator[Change]:
    """No loop before which all parameters are gathered; every layer is recomputed, and has collectives."""
    config = found.config
    if config.mesh.fsdp == 1 or min(found.sft.chunk_items, found.rl.chunk_items) == config.data.candidate_items:
        return
    data, rl = config.data, config.rl
    local = replace(on_one_device(config.model, config.mesh.tensor), remat="block")
    users = max(config.sft.batch_users, rl.batch_users) // config.mesh.batch_shards
    sizes = data.prefix_tokens, data.suffix_tokens, data.rationale_tokens, data.candidate_items
    lists = Lists(users, *sizes, rl.rationales)
    size = kept_bytes(local, lists, config.trained) + logits_bytes(local, users, lists.rows * lists.length)
    gib = float(f"{size / GIB + 0.05:.1f}")
    yield Change(
        {"--compute.update-gib": f"{gib:g}", "--model.remat": "block"},
        lambda c: replace(c, compute=replace(c.compute, update_gib=gib), model=replace(c.model, remat="block")),
    )


def _adapters(config: RunConfig) -> Iterator[Change]:
    """Another experiment: the backbone stays, and needs neither gradients nor moments."""
    if config.trained == "all":
        yield Change(
            {"--trained": "adapters", "--model.lora-rank": "16"},
            lambda c: replace(c, trained="adapters", model=replace(c.model, lora_rank=16)),
        )


def _fewer_users(config: RunConfig) -> Iterator[Change]:
    """Noisier gradients from smaller batches."""
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
    """Part of the fsdp axis, then of the data axis, for tensor: collectives in every layer."""
    mesh, model = config.mesh, config.model
    data, fsdp, tensor = mesh.data, mesh.fsdp, mesh.tensor
    while fsdp % 2 == 0 or data % 2 == 0:
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
