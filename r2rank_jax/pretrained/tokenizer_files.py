"""The files beside a model's weights that say how text becomes ids: copied as they are, never run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from r2rank_jax.errors import ConfigError, PretrainedError

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
COPIED = (
    TOKENIZER,
    SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class SpecialIds:
    """Ids that the data path and a reader of the exported model must agree on."""

    pad: int
    stop: int
    bos: int | None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        PretrainedError: no file, or no object in it.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PretrainedError(f"{path} must be there, got nothing; download or export the model again") from None
    except ValueError as error:
        raise PretrainedError(f"{path} must hold JSON: {error}; download or export the model again") from error
    if not isinstance(found, dict):
        raise PretrainedError(f"{path} must hold a JSON object, got {type(found).__name__}; download the model again")
    return found


def read_special_ids(folder: Path, config: Mapping[str, Any], vocabulary: int) -> SpecialIds:
    """Check a tokenizer against the model's vocabulary and find its special ids.

    The stop token is the tokenizer's end of text, which for a chat model ends its answers; only where the tokenizer
    names none is it config.json's. Many tokenizers pad with that very token, or with none; rationales need another one,
    since a reader that skips padding would skip the stop token. Text never becomes a special token here, so any that
    nothing else uses will do.

    Args:
        folder: with `tokenizer.json`.
        config: content of config.json.
        vocabulary: rows of the embedding, which may be padded beyond the tokenizer's.

    Raises:
        PretrainedError: no `tokenizer.json`, or one that cannot be read.
        ConfigError: an id that the model has no row for, settings that name code, or no stop token.
    """
    backend = _read_tokenizer(folder)
    known = backend.get_vocab(with_added_tokens=True)
    last = max(known, key=known.__getitem__)
    if known[last] >= vocabulary:
        raise ConfigError(
            f"the model must have a row for every id of its tokenizer, got id {known[last]} ({last!r}) and a "
            f"vocabulary of {vocabulary}; take the tokenizer that belongs to the model"
        )
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if settings.get("auto_map"):
        raise ConfigError(
            f"{SETTINGS} must not name code of its own, got auto_map={settings['auto_map']}: none is ever run; if "
            f"{TOKENIZER} is the whole tokenizer, take auto_map out of {SETTINGS}"
        )
    declared = {name: known.get(_text(settings.get(f"{name}_token"))) for name in ("pad", "eos", "bos", "unk")}
    ends = _ids(config.get("eos_token_id"))
    stop = declared["eos"] if declared["eos"] is not None else next(iter(ends), -1)
    if not 0 <= stop < vocabulary:
        raise ConfigError(
            f"{SETTINGS} or config.json must name an end-of-text token below {vocabulary}, got "
            f"{settings.get('eos_token')!r} and {ends}; add eos_token"
        )
    taken = {stop, *ends, *_ids(config.get("bos_token_id")), declared["bos"]}
    special = {i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special}
    template = _chat_template(folder, settings)
    padding = [
        declared["pad"],
        *_ids(config.get("pad_token_id")),
        *(i for i in sorted(special) if "pad" in special[i]),
        declared["unk"],
        *(i for i in sorted(special) if special[i] not in template),
    ]
    return SpecialIds(next((i for i in padding if i in special and i not in taken), stop), stop, declared["bos"])


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what is there of `COPIED`, byte for byte."""
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_settings(folder: Path, backend: Tokenizer, ids: SpecialIds, positions: int) -> None:
    """Write the settings with which transformers reads a tokenizer that was trained here."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": backend.id_to_token(ids.pad),
        "eos_token": backend.id_to_token(ids.stop),
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
    }
    generation = {"pad_token_id": ids.pad, "eos_token_id": ids.stop}
    for name, values in ((SETTINGS, settings), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def set_padding(folder: Path, pad: int) -> None:
    """Name our padding token in the settings of a copied tokenizer: who pads with another one gets the score of a
    padding token, since transformers looks for the id in config.json when it pools."""
    text = _read_tokenizer(folder).id_to_token(pad)
    for path in (folder / SETTINGS, folder / "special_tokens_map.json"):
        settings = read_json(path) if path.is_file() else {}
        if path.name == SETTINGS or settings:
            changed = settings | {"pad_token": text}
            path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / TOKENIZER
    if not path.is_file():
        raise PretrainedError(
            f"{folder} must hold {TOKENIZER}, got none; write it with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise PretrainedError(f"{path} is no tokenizer that can be read ({error}); download it again") from error


def _text(token: Any) -> str:
    """A token in tokenizer_config.json: its text, or an object that holds it."""
    return str(token.get("content", "")) if isinstance(token, dict) else token or ""


def _ids(value: Any) -> list[int]:
    return [] if value is None else [int(i) for i in value] if isinstance(value, list) else [int(value)]


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer in this folder frames messages."""
    return bool(_chat_template(folder, json.loads((folder / SETTINGS).read_text(encoding="utf-8"))))


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str:
    beside = [folder / name for name in ("chat_template.jinja", "chat_template.json") if (folder / name).is_file()]
    return str(settings.get("chat_template") or "") + "".join(path.read_text(encoding="utf-8") for path in beside)
