"""Whether positives and negatives of frozen lists differ in which texts they lack.

If ids of interactions and of the item table do not meet, every positive is untitled while negatives have titles, and a
system separates the two by that alone. A ranking by "has a title" has an AUC of (1 + d) / 2, where d is the difference
of the shares without one. The difference counts from d = 0.1, where this AUC reaches 0.55, and only if it is four
standard errors from zero, which chance exceeds in 1 of 16,000 folders.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import polars as pl

from r2rank_jax.data.prepared.settings import Array

TEXTS = ("title", "year", "genres")
LEAST_DIFFERENCE = 0.1
STANDARD_ERRORS = 4.0


def missing_texts(items: pl.DataFrame) -> Array:
    """bool [len(TEXTS), items]: which of TEXTS each item lacks."""
    lacks = [
        items[name].list.len() == 0 if items.schema[name] == pl.List else items[name].str.strip_chars() == ""
        for name in TEXTS
    ]
    return np.array([column.fill_null(True).to_numpy() for column in lacks])


def count_missing(missing: Array, items: Array, labels: Array) -> Counter[str]:
    """Count the candidates of some lists, and those that lack a text.

    Args:
        missing: the result of `missing_texts`.
        items: int [...] candidates.
        labels: number [...] relevance; above 0 for positives.

    Returns:
        "positive", "negative": candidates; "positive title", ...: those that lack it.
    """
    counts: Counter[str] = Counter()
    for kind, chosen in (("positive", items[labels > 0]), ("negative", items[labels <= 0])):
        counts[kind] = len(chosen)
        for text, lacks in zip(TEXTS, missing, strict=True):
            counts[f"{kind} {text}"] = int(np.sum(lacks[chosen]))
    return counts


def differences(counts: Mapping[str, int]) -> dict[str, str]:
    """Return text -> a description, for each text whose absence separates positives from negatives.

    Args:
        counts: summed results of `count_missing`.
    """
    totals = [counts.get(kind, 0) for kind in ("positive", "negative")]
    if not all(totals):
        return {}
    described = {}
    for text in TEXTS:
        lacking = [counts[f"{kind} {text}"] for kind in ("positive", "negative")]
        shares = [lack / total for lack, total in zip(lacking, totals)]
        pooled = sum(lacking) / sum(totals)
        error = math.sqrt(pooled * (1 - pooled) * sum(1 / total for total in totals))
        difference = abs(shares[0] - shares[1])
        if difference >= LEAST_DIFFERENCE and difference >= STANDARD_ERRORS * error:
            of = [f"{share:.0%} of {total:,}" for share, total in zip(shares, totals)]
            described[text] = f"{of[0]} positives but {of[1]} negatives have no {text}"
    return described
