"""A tiny source in RecBole's exact atomic form, with the traps of the real one, and what is built from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from r2rank_jax.config import DataConfig
from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.dataset import Dataset, load
from r2rank_jax.data.prepared.traces import Traces, read_traces
from r2rank_jax.data.prompts.from_dataset import corpus
from r2rank_jax.data.prompts.tokenizer import as_text_tokenizer, train_tokenizer
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.data.teacher.template import TemplateTeacher

USERS, ITEMS = 40, 60
INTER_HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM_HEADER = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
TRAPS = {
    1: "Usual Suspects, The",
    2: "unkonwn",
    3: "Truth About Cats &amp; Dogs, The",
    4: "Say <stop> and <pad>",
    6: "",
}

Row = tuple[int, int, int, int]  # source user, source item, rating, timestamp


def tiny_rows() -> list[Row]:
    """40 users of two tastes, 12 to 20 interactions each, shuffled, with ties in time; the same on every call."""
    rng = np.random.default_rng(7)
    rows: list[Row] = []
    for user in range(1, USERS + 1):
        taste = np.where((np.arange(ITEMS) % 2) == user % 2, 6.0, 1.0) / (1 + np.arange(ITEMS) / 20)
        chosen = rng.choice(ITEMS, size=int(rng.integers(12, 21)), replace=False, p=taste / taste.sum())
        start = int(rng.integers(0, 50)) * 20
        times = 880_000_000 + np.sort(start + rng.integers(0, 12, size=len(chosen)) * 20)
        for item, time in zip(chosen, times, strict=True):
            liked = 4 if item % 2 == user % 2 else 2
            rows.append((user, int(item) + 1, int(liked + rng.integers(0, 2)), int(time)))
    return [rows[i] for i in rng.permutation(len(rows))]


def write_raw(folder: Path, rows: list[Row] | None = None) -> Path:
    """Write `.inter` and `.item`; item k of taste k % 2, with genres to match."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, row)) + "\n" for row in (tiny_rows() if rows is None else rows)]
    (folder / "tiny.inter").write_text(INTER_HEADER + "".join(lines), encoding="utf-8")
    items = [
        f"{k}\t{TRAPS.get(k, f'Film {chr(64 + k)}{k}')}\t{1940 + k}\t{'Comedy Drama' if k % 2 else 'Sci-Fi Horror'}\n"
        for k in range(1, ITEMS + 1)
    ]
    (folder / "tiny.item").write_text(ITEM_HEADER + "".join(items), encoding="utf-8")
    return folder


@pytest.fixture
def tiny_raw(tmp_path: Path) -> Path:
    """Source folder; a fresh copy for every test."""
    return write_raw(tmp_path / "raw")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared folder with traces; read only."""
    root = tmp_path_factory.mktemp("tiny")
    prepare(write_raw(root / "raw"), root / "data")
    synthesize(root / "data", root / "data" / "traces.jsonl", TemplateTeacher(), lists=50)
    return root / "data"


@pytest.fixture(scope="session")
def dataset(prepared: Path) -> Dataset:
    return load(prepared, "leave_one_out")


@pytest.fixture(scope="session")
def traces(prepared: Path, dataset: Dataset) -> Traces:
    return read_traces(prepared / "traces.jsonl", dataset, "films-1")


@pytest.fixture(scope="session")
def make_encoder(dataset: Dataset, traces: Traces) -> Callable[..., Encoder]:
    """Encoder with other limits than the default, on one tokenizer."""
    tokenizer = as_text_tokenizer(train_tokenizer(corpus(dataset, traces, 10), 600))
    return lambda **limits: Encoder(tokenizer, dataset, DataConfig(**limits))


@pytest.fixture
def encoder(make_encoder: Callable[..., Encoder]) -> Encoder:
    return make_encoder(prefix_tokens=112, suffix_tokens=20, rationale_tokens=24)
