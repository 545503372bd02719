"""Random damage to a small file: bytes, fields, lines, and the file as a whole."""

from __future__ import annotations

import gzip
import random
import re

_BYTES = [
    b"\x00",
    b"\r",
    b"\n",
    b'"',
    b"'",
    b",",
    b"\t",
    b";",
    b"|",
    b":",
    b"{",
    b"}",
    b"[",
    b"\\",
    b"\xff",
    b"\xe9",
    b" ",
]
_BYTES += [b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"&amp;", b"\x1f\x8b", b"\\u0000", b"\\ud800"]
_TEXTS = [
    "",
    " ",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "null",
    "None",
    "true",
    "0",
    "-0.0",
    "-1",
    "1.0",
    "1.5",
    "007",
    "1e3",
    "1e999",
]
_TEXTS += ["9" * 20, "9" * 400, "9" * 5000, "-62135596800000", "1600000000000", "1600000000000000", "0001-01-01"]
_TEXTS += [
    "2001-09-09T01:46:40",
    "2001-09-09T01:46:40.25",
    "2001-13-45",
    "9999-12-31 23:59:59",
    "[1]",
    "{}",
    '"',
    '"x',
    "a,b",
]
_VALUES = [
    "null",
    "NaN",
    "Infinity",
    "true",
    "[]",
    "{}",
    '[["a"], 1, null]',
    '{"name": null}',
    '""',
    '" "',
    "-1",
    "1.0",
    "1e999",
]
_VALUES += [
    "9" * 20,
    "9" * 5000,
    '"9999-99-99"',
    '"\\u0000"',
    '"\\ud800"',
    "None",
    "u'x'",
    "0",
    "-0.0",
    "[" * 50,
    "[" * 3000,
]
_FIELD = re.compile(r"[^,\t|;:\n]+")
_VALUE = re.compile(r"(?<=: )(?:\"[^\"]*\"|'[^']*'|[^,}\n]+)")


def mutated(content: bytes, random: random.Random) -> bytes:
    """Return the content after one to three random mutations."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice((_byte, _byte, _field, _field, _field, _line, _line, _whole))(content, random)
    return content


def _byte(content: bytes, random: random.Random) -> bytes:
    start = random.randrange(len(content) + 1)
    kept = random.choice((0, 0, 1, 1, random.randrange(20)))
    return content[:start] + random.choice((*_BYTES, b"", bytes([random.randrange(256)]))) + content[start + kept :]


def _field(content: bytes, random: random.Random) -> bytes:
    text = content.decode("latin-1")
    pattern, values = (_VALUE, _VALUES) if _VALUE.search(text) else (_FIELD, _TEXTS)
    matches = list(pattern.finditer(text))
    if not matches:
        return content
    match = random.choice(matches)
    value = random.choice(values)
    return (text[: match.start()] + value + text[match.end() :]).encode("latin-1")


def _line(content: bytes, random: random.Random) -> bytes:
    lines = content.split(b"\n")
    place, other = random.randrange(len(lines)), random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            del lines[place]
        case 1:
            lines.insert(other, lines[place])
        case 2:
            lines[place], lines[other] = lines[other], lines[place]
        case 3:
            lines[place] = lines[place][: random.randrange(len(lines[place]) + 1)]
        case 4:
            lines.insert(place, random.choice((b"", b" ", b"\t", b"{}", b"[1]", b'"', b",,,")))
        case 5:
            lines[place] += random.choice((b"\r", b",x", b"\tx", b",", b' "'))
    return b"\n".join(lines)


def _whole(content: bytes, random: random.Random) -> bytes:
    text = content.decode("latin-1")
    match random.randrange(9):
        case 0:
            return b""
        case 1:
            return content.split(b"\n")[0] + b"\n"
        case 2:
            return content[: random.randrange(len(content) + 1)]
        case 3:
            return text.encode(random.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-8")))
        case 4:
            return content.replace(b"\n", random.choice((b"\r", b"\r\n", b"\n\n", b"")))
        case 5:
            packed = bytearray(gzip.compress(content, mtime=0))
            if random.random() < 0.7:
                packed[random.randrange(len(packed))] ^= 1 << random.randrange(8)
            return bytes(packed)
        case 6:
            return gzip.compress(content, mtime=0)[: random.randrange(30)]
        case 7:
            return content.replace(b'"', b"'") if b'"' in content else content.replace(b",", b";")
        case _:
            return bytes(random.randrange(256) for _ in range(random.randrange(200)))
