"""The package's errors. Each message is one line that states what is required, what was given, and the remedy.

The `r2rank` command prints the message without a traceback and ends with the error's exit code. Launchers act on it;
launch/README.md lists what each code means.
"""

from __future__ import annotations

DONE = 0
FAILED = 1
"""Anything unforeseen, such as the death of another process. Launchers try again a limited number of times."""
REFUSED = 2
"""The same command would be refused again."""
STOPPED = 75
"""Stopped on request, with all agreed work committed; the same command continues. sysexits.h calls it EX_TEMPFAIL."""


class R2RankError(Exception):
    """Base class of the package's errors."""

    exit_code: int = REFUSED


class Stopped(R2RankError):
    """A command that ended because it was told to, not because something is wrong."""

    exit_code = STOPPED


class JoinError(R2RankError, RuntimeError):
    """Processes that did not all join in time. Another attempt may succeed."""

    exit_code = FAILED


class EndedElsewhere(R2RankError):
    """A job that another of its processes ended, with that process's reason and exit code."""

    def __init__(self, reason: str, exit_code: int):
        super().__init__(reason)
        self.exit_code = exit_code


class UsageError(R2RankError, ValueError):
    """A command line that the command cannot carry out."""


class ConfigError(R2RankError, ValueError):
    """A setting that cannot work."""


class DataError(R2RankError, ValueError):
    """Data that cannot be used."""


class PretrainedError(R2RankError, ValueError):
    """A pretrained model that cannot be used."""


class CheckpointError(R2RankError, RuntimeError):
    """A checkpoint that cannot be used."""


class StorageError(R2RankError, RuntimeError):
    """An object store that does not do what is asked of it. Another attempt may succeed unless it is `REFUSED`."""

    def __init__(self, reason: str, exit_code: int = FAILED):
        super().__init__(reason)
        self.exit_code = exit_code


class DivergenceError(R2RankError, RuntimeError):
    """Training whose updates stopped being finite."""


class ScoresError(R2RankError, ValueError):
    """Scores that are not finite."""


class ResultsError(R2RankError, ValueError):
    """Results that do not have the format documented in `evaluation/results.py`."""


class ExperimentError(R2RankError, RuntimeError):
    """An experiment whose runs failed, or that does not match what was run."""
