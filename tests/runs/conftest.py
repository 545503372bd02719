"""A tiny data set and configuration, and the `r2rank` command as a user starts it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.command_line import Tiny, make_tiny, succeed, write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny experiment; read only."""
    return make_tiny(tmp_path_factory.mktemp("experiment"))


@pytest.fixture
def own_tiny(tiny: Tiny, tmp_path: Path) -> Tiny:
    """A copy of the tiny experiment that a test may damage."""
    shutil.copytree(tiny.data, tmp_path / "data")
    return write_tiny(tmp_path, tmp_path / "data")


@pytest.fixture(scope="session")
def sft_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a finished SFT phase; read only."""
    run_dir = tmp_path_factory.mktemp("sft") / "run"
    succeed("sft", "--config", tiny.config, "--run-dir", run_dir)
    return run_dir


@pytest.fixture(scope="session")
def rl_run(tiny: Tiny, sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `sft_run` with a finished RL phase; read only."""
    run_dir = tmp_path_factory.mktemp("rl") / "run"
    shutil.copytree(sft_run, run_dir)
    succeed("rl", "--config", tiny.config, "--run-dir", run_dir)
    return run_dir
