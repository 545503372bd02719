"""The `r2rank` command.

Only this package reads flags and the R2RANK_* variables; `plan/compiled.py` passes XLA's and JAX's variables on to a
child process.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from r2rank_jax.cli.arguments import brief
from r2rank_jax.cli.data import add_data
from r2rank_jax.cli.doctor import add_doctor
from r2rank_jax.cli.experiment import add_experiment
from r2rank_jax.cli.model import add_model
from r2rank_jax.cli.plan_and_report import add_plan, add_report
from r2rank_jax.cli.runs import add_runs
from r2rank_jax.config.checks import shown
from r2rank_jax.errors import R2RankError, UsageError

CLOSED_PIPE = 141
"""Exit code of a command whose output nobody reads any more; shells give it to one that SIGPIPE ended."""

ABOUT = """Reasoning to Rank: train a language model to reason about candidates and to rank them.

r2rank data fetch NAME --out DIR
r2rank data prepare --source DIR --out DIR [--seed 0] [--candidates 20] [--protocols ...] [--k-core 5] ...
r2rank data audit DIR
r2rank data card DIR [--tokenizer FILE]
r2rank data synthesize --data DIR --out FILE [--split leave_one_out] [--lists 4000] [--positives 1] [--seed 0]
                      [--template films-1] [--history-items 10]
r2rank data synthesize ... --teacher URL --model NAME [--show-label retry] [--budget-usd 20] [--any-setting value]
r2rank data synthesize ... --teacher batch --model NAME --batch-out FILE | --batch-in FILE
r2rank model fetch NAME --out DIR
r2rank model import HF_DIR --out DIR
r2rank export RUN_OR_MODEL_DIR --out HF_DIR [--phase rl] [--form causal-lm] [--dtype bfloat16] [--shard-gib 4]
r2rank sft | rl | eval | probe | rank --config configs/X.py [--run-dir DIR] [--any.field value]
r2rank doctor --config configs/X.py [--run-dir DIR] [--limit-s 60]
r2rank plan --config configs/X.py --topology v5p:4x4x8 | v6e:2x4 | h200:8 | cpu:8 [--backend abstract | compile]
r2rank report --run-dir DIR
r2rank experiment configs/experiments/X.py [--jobs 2] [--train-only] [--page-only]
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Expected failures print one line on stderr and return exit code 2, without a traceback."""
    try:
        try:
            return _carry_out(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except (R2RankError, FloatingPointError) as error:
        print(f"r2rank: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough, as in `r2rank --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return CLOSED_PIPE
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = brief(str(error)) or "out of memory"
        print(
            f"r2rank: the memory of this machine does not suffice ({reason}); lower batch_users or the tokens of "
            "`data`, or ask `r2rank plan` what fits",
            file=sys.stderr,
        )
        return 2
    except OSError as error:  # a full disk, a folder without permission, a lost mount
        where = f"{error.filename}: " if error.filename else ""
        print(f"r2rank: {where}{error.strerror or error}; mend this and run the command again", file=sys.stderr)
        return 2


def _carry_out(args: list[str]) -> int:
    parser = _parser()
    arguments, overrides = parser.parse_known_args(args)
    # Commands with a configuration or a teacher read further flags themselves.
    if overrides and not (hasattr(arguments, "config") or hasattr(arguments, "teacher")):
        raise UsageError(f"unknown argument {shown(overrides[0])}; see `r2rank {' '.join(args[:2])} --help`")
    return arguments.carry_out(arguments, overrides)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and those of its subcommands."""

    def error(self, message: str) -> NoReturn:
        """Print the error and end with exit code 2."""
        self.exit(2, f"r2rank: {brief(message)}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="r2rank", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    add_data(commands)
    add_model(commands)
    add_runs(commands)
    add_doctor(commands)
    add_experiment(commands)
    add_plan(commands)
    add_report(commands)
    return parser
