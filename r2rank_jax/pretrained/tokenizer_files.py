"""The tokenizer files of a model. They are copied unchanged, and code in them is never run."""

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
    """Ids of special tokens, on which training and the users of an exported model must agree."""

    pad: int
    stop: int
    bos: int | None


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        PretrainedError: the file is missing or does not hold a JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PretrainedError(f"{path} must exist, got no such file; download or export the model again") from None
    except ValueError as error:
        raise PretrainedError(f"{path} must hold JSON: {error}; download or export the model again") from error
    if not isinstance(values, dict):
        raise PretrainedError(f"{path} must hold a JSON object, got {type(values).__name__}; download the model again")
    return values


def read_special_ids(folder: Path, config: Mapping[str, Any], vocabulary: int) -> SpecialIds:
    """Check a tokenizer against the model's vocabulary, and choose its special ids.

    The stop token is the tokenizer's end-of-text token, which ends the answers of a chat model. If the tokenizer names
    none, config.json's is used. Many tokenizers pad with the end-of-text token, or name no padding token. Rationales
    need a different one, because code that skips padding would also skip the stop token. Since text is never encoded as
    a special token, any special token without another use can serve as padding.

    Args:
        folder: folder with `tokenizer.json`.
        config: content of config.json.
        vocabulary: number of rows of the embedding, which may exceed the tokenizer's vocabulary.

    Raises:
        PretrainedError: `tokenizer.json` is missing or cannot be read.
        ConfigError: an id has no row in the embedding, the settings name code, or there is no stop token.
    """
    backend = _read_tokenizer(folder)
    ids = backend.get_vocab(with_added_tokens=True)
    last = max(ids, key=ids.__getitem__)
    if ids[last] >= vocabulary:
        raise ConfigError(
            f"the model must have a row for every id of its tokenizer, got id {ids[last]} ({last!r}) and a "
            f"vocabulary of {vocabulary}; use the tokenizer that belongs to the model"
        )
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if settings.get("auto_map"):
        raise ConfigError(
            f"{SETTINGS} must not name code of its own, got auto_map={settings['auto_map']}, which is never run; if "
            f"{TOKENIZER} is the whole tokenizer, remove auto_map from {SETTINGS}"
        )
    declared = {name: ids.get(_text(settings.get(f"{name}_token"))) for name in ("pad", "eos", "bos", "unk")}
    ends = _ids(config, "eos_token_id")
    stop = declared["eos"] if declared["eos"] is not None else next(iter(ends), -1)
    if not 0 <= stop < vocabulary:
        raise ConfigError(
            f"{SETTINGS} or config.json must name an end-of-text token below {vocabulary}, got "
            f"{settings.get('eos_token')!r} and {ends}; add eos_token"
        )
    taken = {stop, *ends, *_ids(config, "bos_token_id"), declared["bos"]}
    special = {i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special}
    template = _chat_template(folder, settings)
    padding = [
        declared["pad"],
        *_ids(config, "pad_token_id"),
        *(i for i in sorted(special) if "pad" in special[i]),
        declared["unk"],
        *(i for i in sorted(special) if special[i] not in template),
    ]
    return SpecialIds(next((i for i in padding if i in special and i not in taken), stop), stop, declared["bos"])


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy those files of `COPIED` that exist, byte for byte."""
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_settings(folder: Path, backend: Tokenizer, ids: SpecialIds, positions: int) -> None:
    """Write the settings with which transformers reads a tokenizer that this package trained."""
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
    """Set our padding token in the settings of a copied tokenizer.

    Transformers pools at the last token that is not the padding id in config.json. If a tokenizer padded with another
    token, the score would be that of a padding token.
    """
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
        raise PretrainedError(f"{path} cannot be read as a tokenizer ({error}); download it again") from error


def _text(token: Any) -> str:
    """The text of a token in tokenizer_config.json, where it is a string or an object that holds one."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _ids(config: Mapping[str, Any], name: str) -> list[int]:
    value = config.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(not isinstance(i, int) for i in ids):
        raise ConfigError(f"config.json must give {name} as an id or a list of ids, got {value!r}; restore it")
    return ids


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str:
    files = [folder / name for name in ("chat_template.jinja", "chat_template.json") if (folder / name).is_file()]
    return str(settings.get("chat_template") or "") + "".join(path.read_text(encoding="utf-8") for path in files)
