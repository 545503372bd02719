"""`r2rank sft`, `rl`, `eval` and `rank`: the phases of a run, in one process or as one of several."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from r2rank_jax.cli.arguments import UsageError
from r2rank_jax.cli.configuration import add_configured, configuration


def add_runs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `sft`, `rl`, `eval` and `rank`."""
    sft = add_configured(commands, "sft", "learn from worked rationales")
    sft.add_argument("--continued", action="store_true", help="RL's control: go on for RL's wall time")
    rl = add_configured(commands, "rl", "learn from NDCG")
    evaluation = add_configured(commands, "eval", "compare all systems on the held-out test lists")
    rank = add_configured(commands, "rank", "rank your own candidates, with rationales")
    rank.add_argument("--input", type=Path, help="JSONL: history, candidates (see README)")
    rank.add_argument("--output", type=Path, help="JSONL to write; default: print")
    rank.add_argument("--phase", default="rl", choices=("sft", "sft_continued", "rl"))
    for command in (sft, rl, evaluation, rank):
        command.set_defaults(carry_out=_run)


def _run(known: argparse.Namespace, overrides: list[str]) -> int:
    config = configuration(known, overrides)
    run_dir = known.run_dir or Path("runs") / config.name
    join_processes()
    keep_compiled_programs()
    from r2rank_jax.runs.attention_choice import choose_attention
    from r2rank_jax.runs.memory_budget import choose_budget

    config = choose_budget(choose_attention(config, run_dir))
    if known.command == "sft":
        from r2rank_jax.runs import sft

        sft.run(config, run_dir, continued=known.continued)
    elif known.command == "rl":
        from r2rank_jax.runs import rl

        rl.run(config, run_dir)
    elif known.command == "eval":
        from r2rank_jax.runs import eval as evaluation

        evaluation.run(config, run_dir)
    else:
        from r2rank_jax.runs import rank

        if known.input is None:
            raise UsageError("`r2rank rank` needs --input FILE, a JSONL file of lists; the README shows one")
        rank.run(config, run_dir, known.input, known.output, phase=known.phase)
    return 0


def join_processes() -> None:
    """Become one of several processes where a launcher says so (see launch/)."""
    address = os.environ.get("R2RANK_COORDINATOR")
    if address is None:
        return
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=address,
        num_processes=int(os.environ["R2RANK_PROCESSES"]),
        process_id=int(os.environ["R2RANK_PROCESS"]),
    )


def keep_compiled_programs() -> None:
    """A second run of the same programs on the same machine does not compile them again, but for the shortest."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # JAX reads it by itself; empty turns the cache off
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "r2rank_jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # a rollout has many that take less than 1 s
