"""The frame of a prompt: the text that a chat template puts before and after a user's message.

The template is rendered once, around a marker, when a model is imported, and the frame is kept with the model. A
template may contain the date, so that rendering it again would give the prompts of a run another text every day.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2rank_jax.data.prompts import rendering
from r2rank_jax.errors import DataError

MARK = "⟪the prompt stands here⟫"
CPU_S, MEMORY_BYTES = 10, 1 << 29
"""What rendering may use. Templates of chat models take milliseconds and a few MB."""
_WALL_S = 300  # for a process that waits, which CPU seconds do not count; loading transformers alone takes some
_TEMPLATE, _SETTINGS = "chat_template.jinja", "tokenizer_config.json"


@dataclass(frozen=True)
class Frame:
    """Text around a prompt, which may contain special tokens; empty without a chat template."""

    before: str = ""
    after: str = ""


def render_frame(folder: Path, original: Path | None = None) -> Frame:
    """Render the chat template of a tokenizer; without a template there is no frame.

    The template runs in a process of its own with limits on time and memory, see `rendering`.

    Args:
        folder: contains `tokenizer.json`, `tokenizer_config.json` and their companion files.
        original: the folder that messages name, if `folder` is a copy of it.

    Raises:
        DataError: there is more than one template, it cannot be rendered, it needs too much time or memory, or it does
            not show a message once and unchanged.
    """
    if not has_template(folder):
        return Frame()
    shown = original or folder
    command = [sys.executable, "-P", rendering.__file__, str(folder), MARK, str(CPU_S), str(MEMORY_BYTES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_WALL_S)
    except subprocess.TimeoutExpired:
        raise _refusal(shown, f"rendering it takes more than {_WALL_S} s") from None
    if done.returncode == -signal.SIGXCPU:
        raise _refusal(shown, f"rendering it takes more than {CPU_S} s of CPU time")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise _refusal(shown, f"rendering it ended with code {done.returncode} ({last[:200]})")
    result: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    if "problem" in result:
        raise _refusal(shown, result["problem"])
    if result["text"].count(MARK) != 1:
        raise _refusal(shown, f"it shows it {result['text'].count(MARK)} times")
    before, after = result["text"].split(MARK)
    return Frame(before, after)


def has_template(folder: Path) -> bool:
    """Whether the tokenizer in this folder has a chat template."""
    return bool(_template(folder))


def reads_the_clock(folder: Path) -> bool:
    """Whether a chat template names the function that gives it the time."""
    return "strftime_now" in str(_template(folder))


def require_lasting_frame(folder: Path, frame: Frame | None) -> None:
    """Refuse a model whose prompts would differ from day to day.

    Args:
        folder: as in `render_frame`.
        frame: that is kept with the model; None for models that were imported before frames were kept.

    Raises:
        DataError: no frame is kept, and the template reads the clock.
    """
    if frame is None and reads_the_clock(folder):
        raise DataError(
            f"the chat template in {folder} reads the clock, so its text must be kept with the model, but this model "
            "was imported before that was done, and its prompts would differ from day to day; import the model again "
            "and start a new run"
        )


def _template(folder: Path) -> Any:
    """The template that transformers uses: the file, or else the entry in the settings."""
    if (folder / _TEMPLATE).is_file():
        return (folder / _TEMPLATE).read_text(encoding="utf-8", errors="replace")
    try:
        return json.loads((folder / _SETTINGS).read_bytes()).get("chat_template")
    except (FileNotFoundError, ValueError, AttributeError):  # no settings, or none that transformers could read
        return None


def _refusal(folder: Path, problem: str) -> DataError:
    return DataError(
        f"the chat template in {folder} must be one template that shows a user's message once and unchanged, but "
        f"{problem}; correct the template, or remove it to use prompts without a frame"
    )
