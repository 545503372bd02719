"""Runs the three benchmarks of the model path one after the other and prints all figures in one JSON line.

    python benchmarks/bench_path.py                                         about 6 minutes on 2 cores
    python benchmarks/bench_path.py --shape qwen2.5-1.5b --users 8          one accelerator
    python benchmarks/bench_path.py --shape smoke                           check that everything runs

Each runs in a separate process, so that the memory of one does not slow the next. If a benchmark fails or exceeds
`--budget-s`, the limit for all of them, its figures are missing from the line and the exit status is 1.
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

from workload import SHAPES

BENCHMARKS = ("bench_step", "bench_update", "bench_rollout")


def run(name: str, options: list[str], seconds: float) -> dict[str, Any] | None:
    """Print the table of one benchmark and return its figures, or None if it did not finish."""
    # Torch uses the same accelerator, so JAX must not reserve three quarters of its memory.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *options]
    print(f"== {name}", flush=True)
    try:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"{name} did not finish within {seconds:.0f} s", flush=True)
        return None
    *table, last = done.stdout.splitlines() or [""]
    print("\n".join(table), flush=True)
    if done.returncode:
        print(f"{last}\n{name} failed with exit code {done.returncode}", flush=True)
        return None
    return json.loads(last)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="reference")
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="number of timed calls; medians are shown")
    parser.add_argument("--budget-s", type=float, default=1200, help="time limit for all three, in seconds")
    parser.add_argument("--no-peers", action="store_true", help="do not measure torch and TRL")
    arguments = parser.parse_args()
    options = ["--shape", arguments.shape, "--users", str(arguments.users), "--rounds", str(arguments.rounds)]
    options += ["--no-peers"] * arguments.no_peers
    start, missing = time.monotonic(), []
    results: dict[str, Any] = {}
    for name in BENCHMARKS:
        left = arguments.budget_s - (time.monotonic() - start)
        figures = run(name, options, left) if left > 0 else None
        if figures is None:
            missing.append(name)
            continue
        gap = max(results.get("max_logp_gap", 0.0), figures.get("max_logp_gap", 0.0))
        results |= figures | {"max_logp_gap": gap}
    print(json.dumps(results | {"seconds": round(time.monotonic() - start, 1), "missing": missing}))
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
