"""The one error of this package."""

from __future__ import annotations


class PretrainedError(ValueError):
    """A pretrained model that cannot be used, with what is required, what came and the remedy."""
