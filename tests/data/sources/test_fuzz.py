"""Mutated small files of every format are read, or refused in one line by an error of the package."""

import random
import zlib

import pytest

from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.sources.schema import INTERACTION_SCHEMA, ITEM_SCHEMA
from r2rank_jax.data.sources.source import fatal, open_source
from r2rank_jax.errors import R2RankError
from tests.support.sources.formats import ROWS, SOURCES
from tests.support.sources.mutations import mutated
from tests.support.sources.tables import write

MUTATIONS = 1000  # of each format
PREPARED = 50


class Aside:
    """Sets malformed rows aside, and keeps the reasons."""

    def __init__(self):
        self.reasons = []

    def __call__(self, file, line, reason, text):
        self.reasons.append(reason)


def mutations(kind, count, folder):
    """Yield the folder of a source `count` times, each time with other damage to one of its files."""
    source = SOURCES[kind]
    for name, content in source.items():
        write(folder / name, content)
    generator = random.Random(zlib.crc32(kind.encode()))
    for _ in range(count):
        name = generator.choice(sorted(source))
        content = mutated(source[name], generator)
        (folder / name).write_bytes(content)
        yield name, content
        (folder / name).write_bytes(source[name])


def require_one_line(error, content):
    assert "\n" not in str(error) and "\r" not in str(error), (str(error), content)
    assert len(str(error)) < 2000, (str(error), content)


@pytest.mark.parametrize("kind", SOURCES)
def test_the_unmutated_source_is_read(kind, tmp_path):
    for name, content in SOURCES[kind].items():
        write(tmp_path / name, content)
    source = open_source(tmp_path)
    assert sum(frame.height for frame in source.interactions()) == len(ROWS)
    assert sum(frame.height for frame in source.items()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_a_mutated_file_is_read_or_refused_in_one_line(kind, tmp_path, capfd):
    ends = {"read": 0, "refused": 0}
    for number, (name, content) in enumerate(mutations(kind, MUTATIONS, tmp_path)):
        aside = Aside()
        try:
            source = open_source(tmp_path, on_error=fatal if number % 2 else aside)
            assert all(frame.schema == ITEM_SCHEMA for frame in source.items())
            assert all(frame.schema == INTERACTION_SCHEMA for frame in source.interactions())
        except R2RankError as error:
            require_one_line(error, content)
            ends["refused"] += 1
        except BaseException as error:  # polars' panics are no Exception
            pytest.fail(f"{type(error).__name__}: {error}\n{name}: {content!r}")
        else:
            ends["read"] += 1
        assert all(aside.reasons), content
    assert min(ends.values()) > MUTATIONS // 20, ends
    capfd.readouterr()  # the notes of 1,000 sources


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_preparing_a_mutated_source_leaves_nothing_half_written(kind, tmp_path):
    raw, work = tmp_path / "raw", tmp_path / "work"
    work.mkdir()
    for number, (_, content) in enumerate(mutations(kind, PREPARED, raw)):
        out = work / f"out{number}"
        before = set(work.iterdir())
        try:
            prepare(raw, out, candidates=3, on_error=("fatal", "quarantine")[number % 2])
        except R2RankError as error:
            require_one_line(error, content)
            assert set(work.iterdir()) == before, content
        else:
            assert set(work.iterdir()) - before == {out}, content
            assert (out / "manifest.json").is_file()
