"""The `r2rank` command: takes the arguments of a command line and returns an exit code."""

from r2rank_jax.cli.entry import main

__all__ = ["main"]
