"""A tiny Llama with random weights, written as a GGUF file in the same way as llama.cpp's converter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pretrained.gguf_file import (
    stored_weights,
    tiny_weights,
    write_gguf,
)


@pytest.fixture
def tiny_gguf(tmp_path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", stored_weights(tiny_weights()))
