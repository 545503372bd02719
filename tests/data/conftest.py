"""A tiny source in RecBole's exact atomic form, with the traps of the real one, and what is built from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
from tests.support.tiny_source import write_raw


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
