r"""Sanitize item text: which characters of a title, a genre or a brand may reach a prompt.

Item text is untrusted. In a prompt it must stay within one field of one line: it must not end the line, start a field
or a closing mark ("Reason:" or "Score:"), imitate a chat role, or look different to a person than to the model.
docs/prompts.md gives the reason for each class of characters.
"""

from __future__ import annotations

import re
import unicodedata

TITLE_CHARACTERS = 120  # some catalogs hold titles of 600 characters and more
REASON, SCORE = "Reason:", "Score:"  # the marks that end a prompt

_READ_CHARACTERS = 40 * TITLE_CHARACTERS  # the rest is ignored, so that a title of 1 MB costs no more than a page
_MARKS_ON_A_LETTER = 6  # combining marks; Hebrew, Vietnamese and Thai use up to three, Tibetan up to five

# Line ends, tabs, escapes, NUL, and separators of lines or paragraphs.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# Unicode's default-ignorable code points (bidi controls, zero-width spaces, byte order marks, tags, fillers), except
# joiners and variation selectors; interlinear annotations; noncharacters.
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufdd0-\ufdef\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]+"
)
_VARIANTS, _JOINERS = "\ufe00-\ufe0f", "\u200c\u200d"
_JOINER_RUN = re.compile(f"[{_VARIANTS}{_JOINERS}]{{2,}}")
# Joiners and variation selectors form emoji, Persian and Indic words. Next to ASCII they only hide a word from people.
_NEEDLESS_JOINER = re.compile(rf"(?<![^\x00-\x7f])[{_VARIANTS}{_JOINERS}]+|[{_JOINERS}](?![^\x00-\x7f])")
_SEMICOLON = re.compile("[;\u037e\u061b\u204f\ufe14\ufe54\uff1b]")  # all look-alikes, and what NFKC maps to one
_MARK = re.compile("(\\b(?i:reason|score)|Reason|Score)\\s?[:\u2236\ua789\ufe13\ufe55\uff1a]")
_ROLE = re.compile(
    "([<\\[\uff1c\uff3b])(?=[|\uff5c\u2502]|<SYS>|<?/SYS>|0x[0-9a-f]{2}>|/?(?:s|bos|eos|think|tool_call|tool_response|"
    "start_of_turn|end_of_turn|INST|CLS|SEP|MASK|gMASK|SYSTEM_PROMPT|TOOL_\\w+|AVAILABLE_TOOLS)[>\\]\uff1e\uff3d])",
    re.IGNORECASE,
)


def as_data(text: str) -> str:
    """Sanitized item text: one line of bounded length without hidden characters, delimiters or marks of a template.

    Args:
        text: any string; it may contain unpaired surrogates.

    Returns:
        At most `TITLE_CHARACTERS` visible characters in NFC, separated by single spaces. The function is idempotent.

    >>> as_data("Heat; 1995")
    'Heat, 1995'
    """
    text = text[:_READ_CHARACTERS]
    if not (text.isascii() and text.isprintable()):
        text = _visible(text)
    text = _MARK.sub(r"\1 - ", text)
    text = _SEMICOLON.sub(",", _ROLE.sub(r"\1 ", text))
    text = " ".join(text.split())
    return text if len(text) <= TITLE_CHARACTERS else _joined(text[: TITLE_CHARACTERS - 1]) + "…"


def whole_characters(text: str) -> str:
    """Replace surrogate pairs by their characters, and unpaired surrogates, which cannot be encoded, by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _visible(text: str) -> str:
    """One line of visible characters in NFC, or in NFKC if that form spells a mark of the template."""
    text = _HIDDEN.sub("", _CONTROL.sub(" ", whole_characters(text)))
    text = unicodedata.normalize("NFC", _joined(_with_few_marks(" ".join(text.split()))))
    folded = unicodedata.normalize("NFKC", text)  # as in some tokenizers: full-width letters become plain ones
    return folded if _MARK.search(folded) else text


def _with_few_marks(text: str) -> str:
    """Remove combining marks without a letter before them, and all but the first few marks on a letter."""
    kept, marks = [], _MARKS_ON_A_LETTER
    for character in text:
        if unicodedata.category(character).startswith("M"):
            marks += 1
        elif character not in _JOINERS:
            marks = _MARKS_ON_A_LETTER if character == " " else 0
        if marks <= _MARKS_ON_A_LETTER:
            kept.append(character)
    return "".join(kept)


def _joined(text: str) -> str:
    """Keep joiners and variation selectors only where they join or vary something."""

    def one_of_each(run: re.Match[str]) -> str:
        variants = [c for c in run[0] if c not in _JOINERS]
        joiners = [c for c in run[0] if c in _JOINERS]
        return "".join(variants[:1] + joiners[:1])

    return _NEEDLESS_JOINER.sub("", _JOINER_RUN.sub(one_of_each, text))
