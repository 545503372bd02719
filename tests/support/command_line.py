"""The r2rank command in processes of its own, and what its runs write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.data.teacher.template import TemplateTeacher
from tests.support.tiny_source import write_raw

COMMAND = (sys.executable, "-m", "r2rank_jax.cli")
LIMIT_S = 150  # of one command; the longest takes about ten seconds on two idle cores
STEPS = 10
CONFIG = '''"""A run that takes seconds."""

from r2rank_jax.config import DataConfig, EvaluationConfig, ModelConfig, OptimizerConfig, RLConfig, RunConfig, SFTConfig


def config() -> RunConfig:
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, ema_decay=0.9)
    slower = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9)
    return RunConfig(
        name="tiny",
        data=DataConfig(
            directory={directory!r},
            traces={traces!r},
            candidate_items=5,
            train_positives=2,
            history_items=3,
            prefix_tokens=80,
            suffix_tokens=16,
            rationale_tokens=8,
        ),
        model=ModelConfig(vocabulary=400, width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp_width=32),
        sft=SFTConfig(
            steps={steps}, batch_users=4, optimizer=optimizer, log_every=1, validate_every=5, checkpoint_every=3
        ),
        rl=RLConfig(steps={steps}, batch_users=4, optimizer=slower, log_every=1, validate_every=5, checkpoint_every=3),
        evaluation=EvaluationConfig(
            bootstrap_samples=50, permutation_samples=50, batch_users=8, report_users=2
        ),
    )
'''
# Most of the time of a tiny run is compilation. A run with a cached executable equals one that compiles in every bit.
_CACHE = tempfile.TemporaryDirectory(prefix="r2rank-test-cache-")
CACHED = {
    "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without the eight fake devices of the tests and without a launcher's settings."""
    own = ("XLA_FLAGS", "PJRT_NPROC")
    inherited = {
        name: value for name, value in os.environ.items() if name not in own and not name.startswith("R2RANK_")
    }
    fixed = {"JAX_PLATFORMS": "cpu", "COLUMNS": "200", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return inherited | CACHED | fixed | settings


def run_cli(
    *args: object, env: dict[str, str] | None = None, timeout: float = LIMIT_S
) -> subprocess.CompletedProcess[str]:
    """Run `r2rank ARGS` in a new process, which is killed after `timeout` seconds."""
    return subprocess.run(
        [*COMMAND, *map(str, args)],
        env=environment() if env is None else env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(*args: object, **settings: Any) -> str:
    """Run `r2rank ARGS`, require exit code 0, and return its output."""
    done = run_cli(*args, **settings)
    assert done.returncode == 0, f"r2rank {' '.join(map(str, args))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def metrics(run_dir: Path, phase: str) -> list[dict[str, Any]]:
    """The lines of one phase in `metrics.jsonl`, without wall times."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k != "wall_s"} for line in lines if line["phase"] == phase]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@dataclass(frozen=True)
class Tiny:
    """Data and configuration of the tiny experiment."""

    data: Path
    config: Path


def make_tiny(root: Path) -> Tiny:
    """Prepare the tiny data in `root`, with traces, and write their configuration."""
    prepare(write_raw(root / "raw"), root / "data", candidates=5)
    synthesize(root / "data", root / "data/traces.jsonl", TemplateTeacher(), lists=24, candidate_items=5, positives=2)
    return write_tiny(root, root / "data")


def write_tiny(folder: Path, data: Path) -> Tiny:
    """Write a configuration for prepared data into `folder`."""
    config = folder / "tiny.py"
    config.write_text(
        CONFIG.format(directory=str(data), traces=str(data / "traces.jsonl"), steps=STEPS), encoding="utf-8"
    )
    return Tiny(data, config)
