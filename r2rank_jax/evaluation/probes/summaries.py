"""Means with bootstrap intervals over users, and what belongs to groups of lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2rank_jax.evaluation.significance import bootstrap_interval

Values = NDArray[np.float64]
Cell = dict[str, Any]
"""{mean, ci95: [low, high], n}, n users."""


@dataclass(frozen=True)
class Bootstrap:
    """Intervals over users, with one seed for all of them."""

    samples: int
    seed: int

    def cell(self, values: Values, users: NDArray[np.integer]) -> Cell:
        """The mean over users of each user's mean, with its 95% interval.

        Args:
            values: [R], several of a user are averaged first, as they are not independent.
            users: int [R].

        Raises:
            ValueError: no values, or values that are not finite.
        """
        distinct, place = np.unique(users, return_inverse=True)
        of_users = np.bincount(place, weights=values) / np.bincount(place)
        mean, low, high = bootstrap_interval(of_users, self.samples, self.seed)
        return {"mean": mean, "ci95": [low, high], "n": len(distinct)}

    def conditions(self, ndcg: Mapping[str, Values], users: NDArray[np.integer]) -> dict[str, Any]:
        """NDCG under each condition and, paired over users, its difference from the first condition.

        Args:
            ndcg: condition -> float64 [L]; the first one is the unchanged lists.
            users: int [L].

        Returns:
            condition -> {ndcg: cell, difference: cell}; the first one has no difference.
        """
        first = next(iter(ndcg))
        table: dict[str, Any] = {name: {"ndcg": self.cell(values, users)} for name, values in ndcg.items()}
        for name, values in ndcg.items():
            if name != first:
                table[name]["difference"] = self.cell(values - ndcg[first], users)
        return table

    def groups(
        self, ndcg: Values, users: NDArray[np.integer], by: Values, rows: Sequence[NDArray[np.integer]]
    ) -> list[dict[str, Any]]:
        """NDCG of groups of lists; empty groups are left out.

        Args:
            ndcg: float64 [L].
            users: int [L].
            by: float64 [L], the number that groups the lists.
            rows: the lists of each group.

        Returns:
            {from, to, lists, ndcg: cell} of each group, `from` and `to` being its smallest and largest number.
        """
        return [
            {
                "from": float(by[group].min()),
                "to": float(by[group].max()),
                "lists": len(group),
                "ndcg": self.cell(ndcg[group], users[group]),
            }
            for group in rows
            if len(group)
        ]


def equal_groups(values: Values, count: int = 3) -> list[NDArray[np.int64]]:
    """Indices of `count` groups of equal size, of the smallest values to the largest; ties keep their order.

    >>> [group.tolist() for group in equal_groups(np.array([5.0, 1.0, 3.0, 2.0]), 2)]
    [[1, 3], [2, 0]]
    """
    return np.array_split(np.argsort(values, kind="stable"), count)
