"""The three benchmarks of the model path one after the other, and all their figures in one JSON line.

    python benchmarks/bench_path.py                                         about 6 minutes on 2 cores
    python benchmarks/bench_path.py --shape qwen2.5-1.5b --users 8          one accelerator
    python benchmarks/bench_path.py --shape smoke                           to see that everything runs

Each runs in a process of its own, so that what one holds in memory does not slow the next. A benchmark that fails, or
is not done within `--budget-s` for all of them, leaves its figures out of the line and the exit status at 1.
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
    """The figures of one benchmark, whose table goes on screen; None if it did not come to its end."""
    # Torch computes on the same accelerator: JAX takes what it needs and not three quarters of the memory beforehand.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *options]
    print(f"== {name}", flush=True)
    try:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"{name} was not done after {seconds:.0f} s", flush=True)
        return None
    *table, last = done.stdout.splitlines() or [""]
    print("\n".join(table), flush=True)
    if done.returncode:
        print(f"{last}\n{name} ended with {done.returncode}", flush=True)
        return None
    return json.loads(last)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="reference")
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="timed calls; medians are shown")
    parser.add_argument("--budget-s", type=float, default=1200, help="seconds for all three")
    parser.add_argument("--no-peers", action="store_true", help="leave torch and TRL out")
    given = parser.parse_args()
    options = ["--shape", given.shape, "--users", str(given.users), "--rounds", str(given.rounds)]
    options += ["--no-peers"] * given.no_peers
    start, missing = time.monotonic(), []
    found: dict[str, Any] = {}
    for name in BENCHMARKS:
        left = given.budget_s - (time.monotonic() - start)
        figures = run(name, options, left) if left > 0 else None
        if figures is None:
            missing.append(name)
            continue
        gap = max(found.get("max_logp_gap", 0.0), figures.get("max_logp_gap", 0.0))
        found |= figures | {"max_logp_gap": gap}
    print(json.dumps(found | {"seconds": round(time.monotonic() - start, 1), "missing": missing}))
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
