"""The data, the traces, and the model and tokenizer that the run starts from. Their hashes are facts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.config import RunConfig
from r2rank_jax.data.prepared.dataset import Dataset, load_for_prompts
from r2rank_jax.data.prepared.traces import read_traces
from r2rank_jax.data.prompts.frame import require_lasting_frame
from r2rank_jax.doctor.findings import Finding, Outcome, attempt, divided, ok, warning
from r2rank_jax.errors import CheckpointError, DataError
from r2rank_jax.lineage import require_same_inputs, require_same_settings
from r2rank_jax.model.adapters import without_adapters
from r2rank_jax.phases import InputHashes, Phase, PhaseRecord
from r2rank_jax.pretrained.folder import (
    BASE,
    PARAMS,
    TOKENIZER_FOLDER,
    imported_tokenizer_hash,
    read_model_card,
    require_model_of,
)
from r2rank_jax.runs.inputs import open_inputs
from r2rank_jax.runs.session.divergence import has_diverged
from r2rank_jax.sharding import abstract_params, mesh_of_shapes


def check_inputs(config: RunConfig, run_dir: Path) -> Outcome:
    """Open what the run reads, as the run does."""
    dataset, faults = attempt("data", lambda: _data(config))
    if dataset is None:
        return Outcome(faults)
    shown = f"{config.data.split}: {dataset.users:,} users, {dataset.data_hash[:12]}"
    findings = [ok("data", f"{shown} in {config.data.directory}")]
    hashes = {"interactions": dataset.data_hash, "items": dataset.items_hash, "candidates": dataset.candidate_hash}
    for check, part in (("traces", _traces), ("start", _start)):
        outcome, faults = attempt(check, lambda part=part: part(config, run_dir, dataset))  # type: ignore[misc]
        findings += faults if outcome is None else outcome.findings
        hashes |= {} if outcome is None else outcome.facts
    return Outcome(findings, {"data": hashes})


def _data(config: RunConfig) -> Dataset:
    dataset = load_for_prompts(Path(config.data.directory), config.data.split)
    dataset.train_lists(config.data.min_history)
    return dataset


def _traces(config: RunConfig, run_dir: Path, dataset: Dataset) -> Outcome:
    """The traces, as SFT reads them; a run with checkpoints of SFT may have lost them."""
    started = bool(sealed_steps(run_dir / "checkpoints/sft"))
    try:
        traces = read_traces(Path(config.data.traces), dataset, None if started else config.data.template)
    except DataError as error:
        if not started:
            raise
        what, remedy = divided(str(error))
        return Outcome([warning("traces", f"SFT cannot go on: {what}", remedy)])
    what = f"{len(traces):,} lists, {traces.digest[:12]} in {config.data.traces}"
    return Outcome([ok("traces", what)], {"traces": traces.digest})


def _start(config: RunConfig, run_dir: Path, dataset: Dataset) -> Outcome:
    """The tokenizer of an existing run, or the imported model that a new one starts from."""
    if (run_dir / BASE).is_dir() or (run_dir / "tokenizer.json").exists():
        inputs = open_inputs(config, run_dir)
        what = f"tokenizer of the run, {inputs.tokenizer.vocabulary:,} tokens, {inputs.hashes.tokenizer[:12]}"
        return Outcome([ok("start", what), *_resume(config, run_dir, inputs.hashes)], asdict(inputs.hashes))
    if config.pretrained is None:
        return Outcome([ok("start", "random weights; a tokenizer will be trained on the traces")])
    directory = Path(config.pretrained)
    card, plain = read_model_card(directory), replace(without_adapters(config.model), critic=False)
    like = abstract_params(mesh_of_shapes(config.mesh), plain)  # type: ignore[arg-type]
    require_model_of(directory, card.config, plain, like)
    require_lasting_frame(directory / TOKENIZER_FOLDER, card.frame)
    if not (directory / PARAMS).is_dir():
        raise CheckpointError(f"{directory} must hold the model's weights, got no {PARAMS}; import the model again")
    hashes = {"model": card.source.sha256, "tokenizer": imported_tokenizer_hash(directory)}
    return Outcome([ok("start", f"{card.source.hub_id or directory}, {card.source.sha256[:12]}")], hashes)


def _resume(config: RunConfig, run_dir: Path, hashes: InputHashes) -> list[Finding]:
    """Whether the phases that have not finished would go on with this configuration and these inputs.

    The files of the newest commit are not read through; a damaged one is skipped at the start of a run.
    """
    findings: list[Finding] = []
    phases: tuple[Phase, ...] = ("sft", "rl")
    for phase in phases:
        steps = sealed_steps(run_dir / "checkpoints" / phase)
        if not steps:
            continue
        # Orbax would make every process wait for all of them to read the same file.
        content = (run_dir / "checkpoints" / phase / str(steps[0]) / "extras/metadata").read_bytes()
        record = PhaseRecord.from_json(json.loads(content))
        if record.finished:
            continue
        diverged = has_diverged(run_dir, phase)
        _, faults = attempt(
            "resume",
            lambda record=record, step=steps[0], diverged=diverged: (  # type: ignore[misc]
                require_same_settings(record, config, done=step, diverged=diverged),
                require_same_inputs(record, config, hashes),
            ),
        )
        findings += faults or [ok("resume", f"{phase} would go on at step {steps[0]} of {record.steps}")]
    return findings
