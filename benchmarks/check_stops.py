"""Check that SIGTERM and SIGINT at random moments lose nothing and change nothing.

    python benchmarks/check_stops.py            about 40 minutes on 2 cores: 1, 2 and 4 processes, 20 stops each

A tiny model is trained with SFT and with RL, once without disturbance. Other runs get a signal at a random moment after
their first line of output, in one process of the job, are started again, and so on. Every time, all processes must end
with exit code 75 within 10 seconds, or with 0 if they had just finished, and the newest commit must be sealed. In the
end the metrics and every bit of the state must equal those of the undisturbed run. The exit status is 1 if they do not.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.data.teacher.template import TemplateTeacher
from tests.support.command_line import Tiny, write_tiny
from tests.support.runs.stops import Command, disturbed, finish
from tests.support.tiny_source import write_raw

PART = 0.7  # of the time that a whole run takes: the latest moment of a stop, so that there are several in a run
SETTINGS = {
    "sft": ("--sft.steps", "60", "--evaluation.batch-users", "4"),  # validations of ten batches
    "rl": ("--rl.steps", "40", "--evaluation.batch-users", "4", "--compute.wave-tokens", "2"),
}


def prepared(root: Path) -> Tiny:
    """The tiny data and configuration."""
    prepare(write_raw(root / "raw"), root / "data", candidates=5)
    synthesize(root / "data", root / "data/traces.jsonl", TemplateTeacher(), lists=24, candidate_items=5, positives=2)
    return write_tiny(root, root / "data")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--phases", nargs="+", default=["sft", "rl"], choices=("sft", "rl"))
    parser.add_argument("--stops", type=int, default=20, help="signals to each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the runs and their output (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.keep or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        tiny = prepared(root)
        first = Command("sft", tiny.config, root / "sft", 1)
        finish(first)
        wrong, summary = 0, []
        print("phase  processes  stops  after the last check  slowest   problems; moments; resumed at")
        for processes in args.processes:
            for phase in args.phases:
                command = Command(phase, tiny.config, root / f"{phase}-{processes}", processes, SETTINGS[phase])
                before = partial(shutil.copytree, first.run_dir) if phase == "rl" else None
                outcome = disturbed(command, args.stops, seed=args.seed + processes, part=PART, before=before)
                wrong += len(outcome.problems)
                moments = ", ".join(f"{name} {count}" for name, count in sorted(outcome.moments.items()))
                print(
                    f"{phase:5}{processes:11}{outcome.stops:7}{outcome.finished:22}{outcome.slowest_s:8.1f} s   "
                    f"{'; '.join(outcome.problems) or 'none'}; {moments}; {', '.join(map(str, outcome.resumed))}",
                    flush=True,
                )
                summary.append([phase, processes, outcome.stops, round(outcome.slowest_s, 1), len(outcome.problems)])
    print(json.dumps({"stops": summary, "problems": wrong}))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
