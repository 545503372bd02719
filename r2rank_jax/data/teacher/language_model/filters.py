"""Which answers may teach. Each check is strict and counted; an answer counts under the first that refuses it."""

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
    """The checks with what they have seen: a duplicate is a text that was kept before.

    Args:
        length: of a rationale.
        limit: most of it.
    """

    def __init__(self, length: Callable[[str], int], limit: int):
        self._length, self._limit = length, limit
        self._kept: set[str] = set()

    def branch(self) -> Filters:
        """A copy that remembers on its own from here."""
        copy = Filters(self._length, self._limit)
        copy._kept = set(self._kept)
        return copy

    def judge(self, content: str, *, label: bool, shown: str) -> Rationale | str:
        """Read an answer and keep it, or say why not.

        Args:
            content: what the teacher said.
            label: whether the user chose the candidate.
            shown: the prompt's texts; titles may be cited from them.

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
        if key in self._kept:
            return "duplicate"
        self._kept.add(key)
        return rationale


def open_filters(settings: TeacherSettings) -> Filters:
    """Filters that measure in the pupil's tokens where its tokenizer is given, in words otherwise.

    Raises:
        DataError: no such tokenizer.
    """
    if settings.tokenizer is None or settings.rationale_tokens is None:
        return Filters(lambda text: len(text.split()) - 2, settings.rationale_words)  # the verdict's two words are ours
    path = settings.tokenizer / "tokenizer.json" if settings.tokenizer.is_dir() else settings.tokenizer
    if not path.is_file():
        raise DataError(f"--tokenizer must name a tokenizer.json or its folder, got {path}, which is not there")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # as the pupil reads rationales: text is data

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids) + 1  # the token that ends it

    return Filters(tokens, settings.rationale_tokens)


def leaks(reasons: str) -> bool:
    """Whether the words give away that the teacher knew. Quoted titles may say what they like.

    >>> leaks("As the label says, it fits."), leaks('Like "The Label", a drama.')
    (True, False)
    """
    return _LEAKS.search(" ".join(_QUOTED.sub(" ", reasons).replace("’", "'").split())) is not None


def foreign_titles(reasons: str, shown: str) -> list[str]:
    """Quoted names that do not stand in the prompt.

    >>> foreign_titles('Close to "Alien," far from "Emma".', "Alien (1979) 5\\nHeat (1995)")
    ['Emma']
    """
    known = f" {_plain(shown)} "
    named = ("".join(groups) for groups in _QUOTED.findall(reasons))
    return [name for name in named if _plain(name) and f" {_plain(name)} " not in known]


def _plain(text: str) -> str:
    """Words only: case, accents' encoding, punctuation and spaces do not tell titles apart."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))
