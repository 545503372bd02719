"""The `Teacher` protocol: what a teacher receives and what it returns.

To add a teacher, write one module next to `template.py` and add its choice to `_teacher` in `cli/data.py`. The driver,
`synthesize.py`, loads the data, draws the lists and writes the trace file for every teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset
from r2rank_jax.data.prompts.templates import Template


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """The lists that need rationales, and how the student's prompts show them."""

    dataset: Dataset
    lists: CandidateLists  # L training lists of N items
    template: Template  # of the student's prompts
    history_items: int  # interactions that a prompt shows
    seed: int  # that the lists were drawn with


@dataclass(frozen=True, kw_only=True)
class TeacherOutput:
    """The rationales of a lesson, as far as they are complete.

    Without rationales no trace file is written. A teacher that only prepares later work returns none and leaves
    `missing` at None.
    """

    rationales: Mapping[int, Sequence[str]] = field(default_factory=dict)  # row of the lists -> its [N] texts
    header: Mapping[str, Any] = field(default_factory=dict)  # entries to add to the first line of the trace file
    remark: str = ""  # printed when the trace file is written
    missing: str | None = None  # what is left to do and how to continue; None if nothing is
    interrupted: bool = False  # it was told to stop


class Teacher(Protocol):
    """Writes the rationales that SFT learns from.

    The driver draws the same lists when a command is repeated, so a teacher resumes by keeping its own record of
    finished work. A teacher whose answers are expensive must do so; `language_model/journal.py` is an example.
    """

    @property
    def name(self) -> str:
        """Name that the trace file records."""

    @property
    def draws_nested_lists(self) -> bool:
        """Whether a larger number of lists extends a smaller one with the same seed.

        Nested lists let a teacher reuse the answers of a smaller run. The order of the file is then random; otherwise
        the lists are sorted by user and position.
        """

    def rationales(self, lesson: Lesson) -> TeacherOutput:
        """Write rationales for the lists of a lesson.

        Raises:
            DataError: data or settings that this teacher cannot work with.
        """
