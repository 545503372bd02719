"""An oracle for the ranking tests: the definitions by enumeration, in NumPy float64, without code of the package."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.brute_force import (
    gradient,
    kl,
    marginals,
    ndcg,
    one_positive_value,
    prob,
    value,
)


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    """prob, ndcg, value, gradient, marginals, kl, one_positive_value: see the functions of this file."""
    functions = (prob, ndcg, value, gradient, marginals, kl, one_positive_value)
    return SimpleNamespace(**{function.__name__: function for function in functions})
