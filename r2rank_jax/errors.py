"""The package's errors. Each message is one line that states what is required, what was given, and the remedy.

The `r2rank` command prints the message without a traceback and ends with exit code 2.
"""

from __future__ import annotations


class R2RankError(Exception):
    """Base class of the package's errors."""


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


class DivergenceError(R2RankError, RuntimeError):
    """Training whose updates stopped being finite."""


class ScoresError(R2RankError, ValueError):
    """Scores that are not finite."""


class ResultsError(R2RankError, ValueError):
    """Results that do not have the format documented in `evaluation/results.py`."""


class ExperimentError(R2RankError, RuntimeError):
    """An experiment whose runs failed, or that does not match what was run."""
