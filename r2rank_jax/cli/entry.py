"""The `r2rank` command.

Only this package reads flags and the R2RANK_* variables; `plan/compiled.py` passes XLA's and JAX's variables on to a
child process.
"""

from __future__ import annotations

import argparse
import errno
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
from r2rank_jax.cluster import messages
from r2rank_jax.cluster.ending import end_together, leave
from r2rank_jax.config.checks import shown
from r2rank_jax.errors import DONE, FAILED, REFUSED, STOPPED, R2RankError, Stopped, UsageError
from r2rank_jax.stopping import ignore_signals, interrupted_by_signals, kill_workers

CLOSED_PIPE = 141
"""Exit code of a command whose output nobody reads any more; shells give it to one that SIGPIPE ended."""

_PASSING = (errno.EIO, errno.ESTALE, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.EAGAIN)
"""Errors of a network file system that may be gone at the next attempt."""

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
    """Carry out a command line and return the exit code, one of those in `r2rank_jax.errors`.

    Expected failures print one line on stderr, without a traceback. In a job of several processes, the first process
    that fails ends all of them with its code.

    Args:
        argv: the arguments; None: of this process, which ends after this call.
    """
    with interrupted_by_signals(last=argv is None):
        code, reason = _outcome(list(sys.argv[1:] if argv is None else argv))
        ignore_signals()  # nothing that follows can be interrupted, and the code is known
        kill_workers()
        first = messages.process() == 0
        if messages.joined():
            if code == DONE or isinstance(reason, Stopped):  # all processes come here
                try:
                    end_together()
                except Exception as error:  # another process died meanwhile
                    leave(FAILED, error)
            else:
                leave(code, f"r2rank: {reason}" if isinstance(reason, str) else reason or "")
        if isinstance(reason, Exception) and not isinstance(reason, Stopped):
            raise reason
        if reason is not None and first:
            print(f"r2rank: {reason}", file=sys.stderr)
    return code


def _outcome(args: list[str]) -> tuple[int, str | Exception | None]:
    """Carry out a command.

    Returns:
        The exit code, and what to say about it: one line, `Stopped`, or an unforeseen error.
    """
    try:
        try:
            return _carry_out(args), None
        finally:
            sys.stdout.flush()
    except Stopped as stopped:
        return stopped.exit_code, stopped
    except R2RankError as error:
        return error.exit_code, str(error)
    except FloatingPointError as error:
        return REFUSED, str(error)
    except KeyboardInterrupt:
        return STOPPED, "interrupted; nothing is half-written, and the same command starts again or goes on"
    except BrokenPipeError:  # the reader has seen enough, as in `r2rank --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return CLOSED_PIPE, None
    except OSError as error:  # a full disk, a folder without permission, a lost mount
        where = f"{error.filename}: " if error.filename else ""
        passes = isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _PASSING
        line = f"{where}{error.strerror or error}; mend this and run the command again"
        return FAILED if passes else REFUSED, line
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            return FAILED, error
        reason = brief(str(error)) or "out of memory"
        # Not refused: a process that was just killed may still hold the memory of the device.
        return FAILED, (
            f"the memory of this machine does not suffice ({reason}); lower batch_users or the tokens of `data`, or "
            "ask `r2rank plan` what fits"
        )
    except Exception as error:
        return FAILED, error


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
