"""Measures one accelerator in parts. Each part has its own time limit and log file.

    python benchmarks/accelerator.py --out OUT                              all parts, about 9 minutes on an H200
    python benchmarks/accelerator.py --out OUT --parts exact step           some parts
    python benchmarks/accelerator.py --out OUT --shape smoke --users 2      a rehearsal on CPU

exact      attention backends against einsum in float32; one RL step in float32 against the CPU's, at JAX's default
           precision of matrix products and at the highest
step       seconds of one RL step, and its kernels
update     one update, shared prefix against independent prompts
rollout    one rollout, shared prefix against independent prompts; log-probabilities of rollout against trainer
peers      `transformers.generate` and an update in torch, on as many of the same rows as fit
smollm2    SFT, RL and evaluation of SmolLM2-135M on MovieLens-100K; needs --data and --model (docs/performance.md)

If a part fails or exceeds its limit, the others still run. The exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
# The error of XLA for GPUs if Triton has no tiles for a product (jax 0.10.2, 8,000 rows). cuBLAS can compute it.
NO_TILES, WITHOUT_TRITON = "output tile sizes", "--xla_gpu_enable_triton_gemm=false"
LIMITS_S = {"exact": 100, "step": 170, "update": 120, "rollout": 140, "peers": 80, "smollm2": 330}
DRIVER = "import sys; from r2rank_jax.cli import main; sys.exit(main())"


def commands(part: str, arguments: argparse.Namespace) -> list[tuple[list[str], dict[str, str]]]:
    """The commands of one part, each with its additional environment variables."""
    shape = [
        "--shape",
        arguments.shape,
        "--users",
        str(arguments.users),
        "--rounds",
        str(arguments.rounds),
        "--no-peers",
    ]
    alone = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}  # no other process uses this device
    if part == "exact":
        values = [str(FOLDER / "step_values.py"), str(arguments.out / "step_values.npz")]
        on_cpu = {"JAX_PLATFORMS": "cpu"}
        tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/model/test_attention.py"]
        return [
            ([*values, "--write"], on_cpu),
            (values, {}),
            (values, {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}),
            (tests, {"JAX_PLATFORMS": "" if arguments.shape == "smoke" else "cuda"}),
        ]
    if part == "step":
        return [([str(FOLDER / "bench_step.py"), *shape], alone | {"PROFILE": str(arguments.out / "profile")})]
    if part in ("update", "rollout"):
        return [([str(FOLDER / f"bench_{part}.py"), *shape], alone | {"QUICK": "1"})]
    if part == "peers":
        return [([str(FOLDER / "bench_peers.py"), *shape[:-1]], {"JAX_PLATFORMS": "cpu"})]
    run = ["--config", str(FOLDER.parent / "configs/smollm2_135m.py"), "--run-dir", str(arguments.out / "smollm2")]
    run += [
        "--data.directory",
        arguments.data,
        "--data.traces",
        f"{arguments.data}/traces.jsonl",
        "--pretrained",
        arguments.model,
    ]
    run += ["--evaluation.batch-users", "64", "--sft.steps", "250", "--sft.validate-every", "250"]
    run += ["--sft.checkpoint-every", "250", "--sft.optimizer.learning-rate", "1e-4", "--rl.steps", "60"]
    run += ["--rl.validate-every", "60", "--rl.checkpoint-every", "60", "--rl.optimizer.learning-rate", "1e-5"]
    return [(["-c", DRIVER, phase, *run], alone) for phase in ("sft", "rl", "eval")]


def run_process(command: list[str], environment: dict[str, str], log: Path, seconds: float) -> tuple[int, str]:
    """Run one process and append its output to `log`.

    Returns:
        The exit status, 124 if time ran out, and the output.
    """
    print(f"== {environment} {' '.join(command)[:100]}", flush=True)
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as file:
        try:
            status = subprocess.run(
                [sys.executable, *command],
                env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ | environment,
                cwd=FOLDER.parent,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=max(seconds, 1),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    printed = log.read_bytes()[before:].decode(errors="replace")
    print(printed[-2500:], flush=True)
    return status, printed


def run_part(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the commands of one part in order. Their output goes to the screen and to OUT/PART.log."""
    start, status, figures, log = time.monotonic(), [], [], arguments.out / f"{part}.log"
    for command, environment in commands(part, arguments):

        def left() -> float:
            return LIMITS_S[part] - (time.monotonic() - start)

        code, printed = run_process(command, environment, log, left())
        if code not in (0, 124) and NO_TILES in printed:
            flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {WITHOUT_TRITON}"}
            code, printed = run_process(command, environment | flags, log, left())
        status.append(code)
        figures += [json.loads(line) for line in printed.splitlines()[-1:] if line.startswith("{")]
    return {"part": part, "status": status, "seconds": round(time.monotonic() - start, 1), "figures": figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and figures")
    parser.add_argument("--parts", nargs="+", choices=LIMITS_S, default=list(LIMITS_S))
    parser.add_argument("--shape", default="qwen2.5-1.5b")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="data/ml-100k", help="prepared MovieLens-100K with traces.jsonl")
    parser.add_argument("--model", default="models/smollm2-135m", help="folder that `r2rank model import` wrote")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for part in arguments.parts:
        result = run_part(part, arguments)
        failed |= any(result["status"])
        with (arguments.out / "accelerator.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
    print((arguments.out / "accelerator.jsonl").read_text())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
