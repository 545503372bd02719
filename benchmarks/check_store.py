"""Check that kill -9 while a commit is sent to an object store loses no commit before it and changes nothing.

    python benchmarks/check_store.py            about 12 minutes on 2 cores: SFT on S3 and Google Cloud, RL on S3

A tiny model is trained with its run directory in a local store: moto for s3://, fake-gcs-server for gs://. It is killed
while a commit is being sent, until that happened 20 times. After every kill, a machine that has nothing of the run
fetches it: the newest sealed step must be restored, equal in every bit to the same step of a run on disk. Half of the
time, such a machine also continues the run. Whole runs must end equal to the one on disk, metrics included. The exit
status is 1 if anything differs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.command_line import make_tiny, succeed
from tests.support.runs.store_kills import Phase, kill_often
from tests.support.servers.object_stores import STORES

SETTINGS = {
    "sft": ("--sft.steps", "40", "--sft.checkpoint-every", "1", "--sft.validate-every", "20"),
    "rl": ("--rl.steps", "30", "--rl.checkpoint-every", "1", "--rl.validate-every", "20"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["sft:s3", "rl:s3", "sft:gs"], metavar="PHASE:STORE")
    parser.add_argument("--kills", type=int, default=20, help="kills during a save of each case")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    wrong, summary = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        tiny = make_tiny(root)
        sft = root / "sft"
        succeed("sft", "--config", tiny.config, "--run-dir", sft)
        print("phase  store  kills in a save  after it  whole runs   problems; restored steps")
        for case in args.cases:
            name, scheme = case.split(":")
            phase = Phase(name, tiny.config, SETTINGS[name])
            (folder := root / case.replace(":", "-")).mkdir()
            with STORES[scheme]() as store:
                before = sft if name == "rl" else None
                outcome = kill_often(phase, store, folder, kills=args.kills, seed=args.seed, sft=before)
            wrong += len(outcome.problems)
            print(
                f"{name:5}{scheme:>7}{outcome.sending:17}{outcome.other:10}{outcome.finished:12}   "
                f"{'; '.join(outcome.problems) or 'none'}; {', '.join(map(str, outcome.restored))}",
                flush=True,
            )
            summary.append([name, scheme, outcome.sending, outcome.other, outcome.finished, len(outcome.problems)])
    print(json.dumps({"kills": summary, "problems": wrong}))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
