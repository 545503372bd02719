"""What a policy was trained on, compared with what a command gives it.

A phase commits its configuration and the hashes of its inputs (`PhaseRecord`). Every command that resumes a phase or
uses a policy compares them with its own, so that a policy is never trained further, judged or served on something else
without a word. Contents are compared, not paths, and nothing that only says how often to log or on which machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r2rank_jax.config import RunConfig, differences, in_current_fields, to_json
from r2rank_jax.errors import CheckpointError
from r2rank_jax.phases import InputHashes, PhaseRecord

MACHINE = ("attention", "remat")
"""Fields of `model` that differ between machines."""
FREE = (*MACHINE, "directory", "traces", "log_every", "validate_every", "checkpoint_every", "gradients_every", "steps")
"""Fields that may change when a phase resumes. Paths are free because the hashes of their contents are compared."""
PROMPT = ("template", "history_items", "prefix_tokens", "suffix_tokens", "rationale_tokens")
"""Fields of `data` that decide what a policy reads and writes."""
DATA = ("interactions", "items", "candidates")
"""Fields of `InputHashes` that belong to the prepared folder."""


def require_same_model(record: PhaseRecord, config: RunConfig) -> None:
    """Refuse a checkpoint of another model. With equal shapes it would load without an error.

    Raises:
        CheckpointError: a field of `model` differs. The message names all fields that do.
    """
    changed = _changed(record.config, config, "model", MACHINE)
    _refuse(changed, f"the {record.phase} checkpoint belongs to another model", "use the saved values")


def require_same_settings(record: PhaseRecord, config: RunConfig, *, done: int, diverged: bool = False) -> list[str]:
    """Refuse to resume a phase with settings that would change its result.

    Args:
        record: of the commit to resume from.
        config: the current configuration.
        done: number of steps that the commit has done.
        diverged: the phase stopped because it diverged, so its learning rate may be lower now.

    Returns:
        The permitted changes that do affect the rest of the phase, for the record: more or fewer steps; with more, the
        schedule of the learning rate; after a divergence, a lower rate; a `patience` that has not run out.

    Raises:
        CheckpointError: another field differs, the phase has done more steps than it should, or it ended early and
            should do more.
    """
    section = "rl" if record.phase == "rl" else "sft"
    steps = config.rl.steps if record.phase == "rl" else config.sft.steps
    if steps < done:
        raise CheckpointError(
            f"{section}.steps must be at least {done}, the steps that {record.phase} has done, got {steps}; raise it, "
            "or choose another --run-dir"
        )
    best, patience = record.best, getattr(config, section).patience
    if best is not None and record.finished and done < record.steps < steps and patience <= best.later:
        raise CheckpointError(
            f"{section}.steps={steps} needs more patience: {record.phase} ended at step {done}, as no validation after "
            f"step {best.step} was better; set {section}.patience above {best.later}"
        )
    changed = []
    for part in ("seed", "trained", "data", "model", section):
        changed += _changed(record.config, config, part, _free(config, part))
    if (record.config.get("pretrained") is None) != (config.pretrained is None):  # another path may hold the same model
        changed.append(f"pretrained: {record.config.get('pretrained')} -> {config.pretrained}")
    if patience:
        changed += _changed(record.config, config, "evaluation", (), only=("ks", "rationales", "validation_users"))
    changes = [] if steps == record.steps else [f"{section}.steps: {record.steps} -> {steps}"]
    permitted = []
    if steps > record.steps:
        permitted.append(f"{section}.optimizer.schedule: ")
    if best is not None and patience > best.later:
        permitted.append(f"{section}.patience: ")
    if diverged and _rate(record.config, section) > getattr(config, section).optimizer.learning_rate:
        permitted.append(f"{section}.optimizer.learning_rate: ")
    changes += [line for line in changed if line.startswith(tuple(permitted))]
    changed = [line for line in changed if not line.startswith(tuple(permitted))]
    _refuse(changed, f"{record.phase} in this run directory has other settings", "run with the saved settings")
    return [f"from step {done}: {change}" for change in changes]


def require_same_inputs(
    record: PhaseRecord, config: RunConfig, hashes: InputHashes, *, other_data: bool | None = None
) -> list[str]:
    """Refuse data, a tokenizer or prompts other than those that a policy was trained with.

    Args:
        record: of the policy's commit.
        config: the current configuration.
        hashes: of the current inputs.
        other_data: accept another prepared folder or split. None: the command does not offer that.

    Returns:
        The accepted differences of the data; empty without `other_data`.

    Raises:
        CheckpointError: something else differs, or the data do without `other_data`.
    """
    require_same_prompts(record, config, hashes.tokenizer)
    changed = _changed(record.config, config, "data", (), only=("split",))
    if record.inputs is not None:
        now = dataclasses.asdict(hashes)
        changed += [f"{name}: {_short(record.inputs[n])} -> {_short(now[n])}" for n, name in _NAMES.items()
                    if record.inputs[n] != now[n]]  # fmt: skip
    if changed and not other_data:
        remedy = "set data.directory and data.split to those that it was trained with"
        if other_data is not None:
            remedy += ", or add --other-data to evaluate it on these data on purpose"
        _refuse(changed, f"{record.phase} was trained on other data", remedy)
    return changed


def other_settings(record: PhaseRecord, config: RunConfig) -> list[str]:
    """Settings of training that a configuration holds and a policy was not trained with, as `seed: 0 -> 5`.

    Neither refused nor ignored where a policy is only used: a checkpoint may be older than a permitted change.
    """
    section = "rl" if record.phase == "rl" else "sft"
    parts = ("seed", "trained", "data", section)
    changed = [line for part in parts for line in _changed(record.config, config, part, (*FREE, *PROMPT, "split"))]
    if (record.config.get("pretrained") is None) != (config.pretrained is None):
        changed.append(f"pretrained: {record.config.get('pretrained')} -> {config.pretrained}")
    return changed


def require_same_prompts(record: PhaseRecord, config: RunConfig, tokenizer: str) -> None:
    """Refuse prompts or a tokenizer (by its hash) other than those that a policy was trained with.

    Raises:
        CheckpointError: a field of `PROMPT` or the tokenizer differs.
    """
    changed = _changed(record.config, config, "data", (), only=PROMPT)
    if record.inputs is not None and record.inputs["tokenizer"] != tokenizer:
        changed.append(f"tokenizer: {_short(record.inputs['tokenizer'])} -> {_short(tokenizer)}")
    _refuse(changed, f"{record.phase} was trained with other prompts", "use the saved values")


def without_machine_settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model` of a configuration without the settings that may differ between machines."""
    return {name: value for name, value in section.items() if name not in MACHINE}


_NAMES = {name: f"{name} (SHA-256)" for name in DATA}


def _free(config: RunConfig, part: str) -> tuple[str, ...]:
    """Fields of a part that may change on resuming. Where validations choose the policy, their interval may not."""
    chooses = part in ("sft", "rl") and getattr(config, part).patience > 0
    return tuple(name for name in FREE if not (chooses and name == "validate_every"))


def _changed(
    saved: Mapping[str, Any], config: RunConfig, part: str, free: tuple[str, ...], only: tuple[str, ...] = ()
) -> list[str]:
    """The fields of one part of the configuration that differ, as `data.split: a -> b`."""
    old, new = (_relevant(_with_defaults(values.get(part), part), free, only) for values in (saved, to_json(config)))
    return differences({part: old}, {part: new})


def _relevant(section: Any, free: tuple[str, ...], only: tuple[str, ...]) -> Any:
    if not isinstance(section, dict):
        return section
    return {name: value for name, value in section.items() if name not in free and (not only or name in only)}


def _with_defaults(section: Any, part: str) -> Any:
    """Add fields that are newer than the saved section. When it was saved, the code behaved as with their defaults."""
    defaults = to_json(RunConfig(name="any"))[part]
    if not isinstance(section, dict):
        return defaults if section is None else section
    section = in_current_fields(section)
    nested = {
        n: defaults[n] | v for n, v in section.items() if isinstance(v, dict) and isinstance(defaults.get(n), dict)
    }
    return defaults | section | nested


def _rate(saved: Mapping[str, Any], section: str) -> float:
    return float(saved[section]["optimizer"]["learning_rate"])


def _short(digest: str) -> str:
    return digest[:12]


def _refuse(changed: list[str], what: str, remedy: str) -> None:
    if changed:
        raise CheckpointError(
            f"{what}; differing (saved -> now): {'; '.join(changed)}. {remedy[0].upper()}{remedy[1:]}, or choose "
            "another --run-dir"
        )
