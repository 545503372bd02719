"""`r2rank sft`, `rl`, `eval`, `probe` and `rank`: the phases of a run, in one process or as one of several."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from r2rank_jax.cli.configuration import add_configured, configuration
from r2rank_jax.cli.run_places import fetched, stored_run
from r2rank_jax.cluster.ending import leave
from r2rank_jax.cluster.joining import join
from r2rank_jax.cluster.meeting import stay_away
from r2rank_jax.cluster.variables import read_job
from r2rank_jax.config import RunConfig
from r2rank_jax.data.prepared.splits import HELD_OUT
from r2rank_jax.errors import R2RankError, UsageError
from r2rank_jax.files.places import require_file, require_folder
from r2rank_jax.phases import PHASES
from r2rank_jax.stopping import asked_to_stop, end_process

if TYPE_CHECKING:
    from r2rank_jax.checkpoint.commits import Mirror

_FILES = {"eval": ("results.json", "by_list.npz", "rationales.jsonl"), "probe": ("probes.json",)}
"""What commands write that train nothing."""


def add_runs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `sft`, `rl`, `eval`, `probe` and `rank`."""
    sft = add_configured(commands, "sft", "train on worked rationales (supervised fine-tuning)")
    sft.add_argument(
        "--continued",
        action="store_true",
        help="train the finished SFT policy further with as much work as RL, as RL's control",
    )
    rl = add_configured(commands, "rl", "train on the reward of rankings (reinforcement learning)")
    evaluation = add_configured(commands, "eval", "evaluate baselines and all phases on the test lists")
    evaluation.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="evaluate the checkpoint of this step (default: the one that `rank` and `export` use)",
    )
    evaluation.add_argument(
        "--other-data",
        action="store_true",
        help="evaluate on purpose on data or a split that the policies were not trained with; the results say so",
    )
    evaluation.add_argument(
        "--phase",
        action="append",
        default=[],
        choices=PHASES,
        help="evaluate this phase only; may be repeated (default: all that the run directory has)",
    )
    probe = add_configured(commands, "probe", "ask what the ranking of a trained policy rests on")
    probe.add_argument("--phase", default="rl", choices=PHASES, help="phase whose policy is probed (default: rl)")
    probe.add_argument("--lists", default="valid", choices=HELD_OUT, help="lists to probe it on (default: valid)")
    for command in (evaluation, probe):
        command.add_argument(
            "--out", type=Path, metavar="DIR", help="folder for what the command writes (default: the run directory)"
        )
    rank = add_configured(commands, "rank", "rank your own candidates, each with a rationale")
    rank.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="JSONL file of histories and candidates, gzipped or not, see README; required",
    )
    rank.add_argument("--output", type=Path, metavar="FILE", help="JSONL file to write (default: print)")
    rank.add_argument("--phase", default="rl", choices=PHASES, help="phase whose policy ranks (default: rl)")
    for command in (sft, rl, evaluation, probe, rank):
        command.set_defaults(carry_out=_run)


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    training = arguments.command in ("sft", "rl")
    with others_told_of_errors():
        stored = stored_run(arguments, use="write" if training else "read", phases=_phases_used(arguments))
        config = configuration(arguments, overrides)
        run_dir = arguments.run_dir or Path("runs") / config.name
        _require_outputs(arguments, run_dir)
    spread = join_processes()
    keep_compiled_programs()
    from r2rank_jax.runs.attention_choice import choose_attention
    from r2rank_jax.runs.memory_budget import choose_budget
    from r2rank_jax.runs.session.one_writer import one_writer

    with ExitStack() as session:
        mirror = None
        if training:
            session.enter_context(_asked_to_stop(spread))
        if stored is not None:
            mirror = session.enter_context(fetched(stored))
        elif training:
            session.enter_context(one_writer(run_dir))
        config = choose_budget(choose_attention(config, run_dir))
        _carry_out(arguments, config, run_dir, mirror)
    return 0


def _phases_used(arguments: argparse.Namespace) -> list[str] | None:
    """The phases whose policies a command uses; None: it may use all."""
    if arguments.command == "rank":
        return [arguments.phase]
    return arguments.phase or None if arguments.command == "eval" else None


def _asked_to_stop(spread: Callable[[], None] | None) -> AbstractContextManager[None]:
    """Let SIGTERM and SIGINT make a training phase commit and stop, in all processes at the same point."""
    if spread is None:
        return asked_to_stop(leave=end_process)
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    return asked_to_stop(agreed=reached_preemption_sync_point, spread=spread, leave=leave)


def _carry_out(arguments: argparse.Namespace, config: RunConfig, run_dir: Path, mirror: Mirror | None) -> None:
    if arguments.command == "sft":
        from r2rank_jax.runs import sft

        sft.run(config, run_dir, continued=arguments.continued, mirror=mirror)
    elif arguments.command == "rl":
        from r2rank_jax.runs import rl

        rl.run(config, run_dir, mirror=mirror)
    elif arguments.command == "eval":
        from r2rank_jax.runs import eval as evaluation

        evaluation.run(
            config,
            run_dir,
            step=arguments.step,
            other_data=arguments.other_data,
            only=arguments.phase,
            out=arguments.out,
        )
    elif arguments.command == "probe":
        from r2rank_jax.runs.probe import probe

        probe.run(config, run_dir, phase=arguments.phase, name=arguments.lists, out=arguments.out)
    else:
        from r2rank_jax.runs import rank

        rank.run(config, run_dir, arguments.input, arguments.output, phase=arguments.phase)


def _require_outputs(arguments: argparse.Namespace, run_dir: Path) -> None:
    """Try the places that the command will write, and those arguments of `rank` that have no default."""
    if arguments.command == "rank":
        if arguments.input is None:
            raise UsageError("`r2rank rank` needs --input FILE, a JSONL file of lists; the README shows one")
        if arguments.output is not None:
            require_file(arguments.output, "--output")
        return
    out = getattr(arguments, "out", None)
    folder, flag = (run_dir, "--run-dir") if out is None else (out, "--out")
    require_folder(folder, flag)
    for name in _FILES.get(arguments.command, ("config.json", "metrics.jsonl")):
        require_file(folder / name, flag)
    if arguments.command not in _FILES:
        require_folder(run_dir / "checkpoints", "--run-dir")


@contextmanager
def others_told_of_errors() -> Iterator[None]:
    """Tell the other processes of the job, which may be waiting to join, if this one is refused before it joins."""
    try:
        yield
    except R2RankError as error:
        with suppress(UsageError):  # a launcher's variables cannot be read; then there is nobody to tell
            job = read_job(os.environ)
            if job is not None and job.place is not None:
                stay_away(job.place, error.exit_code, str(error))
        raise


def join_processes(*, least_heartbeat_s: int = 0) -> Callable[[], None] | None:
    """Join the other processes of the job if a launcher has set the variables of launch/README.md.

    Args:
        least_heartbeat_s: for a command that itself notices processes without a sign of life.

    Returns:
        What tells the other processes that this one was asked to stop; None for a process on its own.

    Raises:
        UsageError: a variable is missing or wrong, or the processes can never join.
        JoinError: some processes did not arrive in time.
    """
    job = read_job(os.environ)
    if job is None:
        return None
    limits = replace(job.limits, heartbeat_s=max(job.limits.heartbeat_s, least_heartbeat_s))
    return join(replace(job, limits=limits))


def keep_compiled_programs() -> None:
    """Cache compiled programs on disk, so that a second run on the same machine need not compile them again."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # JAX reads the variable itself; empty turns the cache off
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "r2rank_jax" / "compiled"))
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0.1
    )  # a rollout has many programs that compile in less than 1 s
