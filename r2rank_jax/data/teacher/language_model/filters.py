"""Decide which answers become rationales. Refusals are counted under the first check that fails."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from tokenizers import Tokenizer

from r2rank_jax.data.teacher.language_model.instructions import Rationale, read_rationale
from r2rank_jax.data.teacher.language_model.settings import TeacherSettings
from r2rank_jax.errors import DataError

REASONS = ("empty", "no verdict", "contradicts the label", "leaks the label", "too long", "foreign title", "duplicate")

_QUOTED = re.compile(r'"([^"]*)"|“([^“”]*)”|„([^„“”]*)[“”]|«([^«»]*)»')
_LEAKS = re.compile(
    r"""\b(?: (?:the|this|that|given|provided|true|actual|correct|gold|hidden|known|shown) \s labels? \b
        | label(?:led|ed) \s (?:as|a|an) \b
        | ground [ -] truth
        | (?:given|provided|true|actual|correct|gold|hidden|known|shown) \s (?:outcome|answer|verdict|result) \b
        | (?:I|we|I\ have|we\ have) \s? (?:was|were|am|are|'m|'re|been) \s (?:told|informed|instructed) \b
        | (?:told|informed) \s (?:me|us|that) \b
        | (?:the|your) \s (?:instructions?|prompt|hint) \b
        | went \s on \s to \b
        | (?:actually|in\ fact|indeed|ultimately|eventually) \s (?:chose|picked|selected|passed)
        | did \s (?:not\ |n't\ |indeed\ |in\ fact\ )? (?:choose|pick|select|go\ on)
        | didn't \s (?:choose|pick|select|go\ on)
        )""",
    re.IGNORECASE | re.VERBOSE,
)


class Filters:
    """The checks, with the texts accepted so far, which an answer must not repeat.

    Args:
        length: measures a rationale.
        limit: largest length accepted.
    """

    def __init__(self, length: Callable[[str], int], limit: int):
        self._length, self._limit = length, limit
        self._accepted: set[str] = set()

    def branch(self) -> Filters:
        """A copy; from here on, each remembers only its own texts."""
        copy = Filters(self._length, self._limit)
        copy._accepted = set(self._accepted)
        return copy

    def judge(self, content: str, *, label: bool, shown: str) -> Rationale | str:
        """Read an answer, and accept or refuse it.

        Args:
            content: of the teacher's answer.
            label: whether the user chose the candidate.
            shown: the prompt's text, from which titles may be cited.

        Returns:
            The rationale, or one of `REASONS`.
        """
        if not content.strip():
            return "empty"
        rationale = read_rationale(content)
        if rationale is None:
            return "no verdict"
        if not rationale.reasons:
            return "empty"
        if rationale.match != label:
            return "contradicts the label"
        if leaks(rationale.reasons):
            return "leaks the label"
        if self._length(rationale.text) > self._limit:
            return "too long"
        if foreign_titles(rationale.reasons, shown):
            return "foreign title"
        key = _plain(rationale.text)
        if key in self._accepted:
            return "duplicate"
        self._accepted.add(key)
        return rationale


def open_filters(settings: TeacherSettings) -> Filters:
    """Filters that measure length in the student's tokens if its tokenizer is given, and in words otherwise.

    Raises:
        DataError: no such tokenizer.
    """
    if settings.tokenizer is None or settings.rationale_tokens is None:
        return Filters(
            lambda text: len(text.split()) - 2, settings.rationale_words
        )  # without the two words of the verdict
    path = settings.tokenizer / "tokenizer.json" if settings.tokenizer.is_dir() else settings.tokenizer
    if not path.is_file():
        raise DataError(
            f"--tokenizer must name a tokenizer.json or its folder, got {path}, which does not exist; give its path"
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # as the student reads rationales: text never becomes a special token

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids) + 1  # and the stop token

    return Filters(tokens, settings.rationale_tokens)


def leaks(reasons: str) -> bool:
    """Whether the words reveal that the teacher was told the label. Quoted titles are not checked.

    >>> leaks("As the label says, it fits."), leaks('Like "The Label", a drama.')
    (True, False)
    """
    return _LEAKS.search(" ".join(_QUOTED.sub(" ", reasons).replace("’", "'").split())) is not None


def foreign_titles(reasons: str, shown: str) -> list[str]:
    """Quoted names that are not in the prompt.

    >>> foreign_titles('Close to "Alien," far from "Emma".', "Alien (1979) 5\\nHeat (1995)")
    ['Emma']
    """
    prompt = f" {_plain(shown)} "
    quoted = ("".join(groups) for groups in _QUOTED.findall(reasons))
    return [name for name in quoted if _plain(name) and f" {_plain(name)} " not in prompt]


def _plain(text: str) -> str:
    """The words alone, so that case, the encoding of accents, punctuation and spaces do not matter in comparisons."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))
