"""The `r2rank` command. In come the words of a command line; out come an exit code and, on failure, one line."""

from r2rank_jax.cli.entry import main

__all__ = ["main"]
