"""One spelling for each objective that a configuration names, so that equal rewards compare equal."""

from __future__ import annotations

import math
import re

from r2rank_jax.config.checks import require_value
from r2rank_jax.errors import ConfigError

_FACTOR = re.compile(r"(^|[+-])(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\*")


def normal_objective(field: str, text: str) -> str:
    """The text without spaces, a leading plus and factors of 1: " 1.0*ndcg@10 + .50*mrr" becomes "ndcg@10+0.5*mrr".

    Whether the names exist is checked by `train.objectives.check`, because functions of a user can be among them.

    Raises:
        ConfigError: a factor that is not finite.
    """

    def shortest(match: re.Match[str]) -> str:
        factor = float(match[2])
        require_value(math.isfinite(factor), field, "a sum with finite factors", text)
        return match[1] + ("" if factor == 1 else f"{factor!r}".removesuffix(".0") + "*")

    return _FACTOR.sub(shortest, re.sub(r"\s+", "", text)).removeprefix("+")


def in_current_fields(rl: dict[str, object]) -> dict[str, object]:
    """The section `rl` of a stored configuration, as this version writes it.

    `metric_k` is a former field, the cut-off of NDCG when it was the only reward.

    Raises:
        ConfigError: `metric_k` is no cut-off, or contradicts `reward`.
    """
    section = dict(rl)
    if "metric_k" in section:
        k = section.pop("metric_k")
        require_value(isinstance(k, int) and not isinstance(k, bool) and k >= 1, "rl.metric_k", "at least 1", k)
        section.setdefault("reward", f"ndcg@{k}")
        if normal_objective("rl.reward", str(section["reward"])) != f"ndcg@{k}":
            raise ConfigError(
                f"rl.metric_k={k} is the old spelling of rl.reward=ndcg@{k}, got rl.reward={section['reward']} as "
                "well; remove rl.metric_k"
            )
    if isinstance(section.get("reward"), str):
        section["reward"] = normal_objective("rl.reward", str(section["reward"]))
    return section
