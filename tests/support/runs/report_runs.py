"""Run directories for the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax import config as configuration
from r2rank_jax.evaluation import results as evaluation_results

ITEMS = 20
FILMS = (
    "Fargo", "Toy Story", "The Usual Suspects", "Contact", "Scream", "Titanic", "Jerry Maguire", "The Rock",
    "Star Trek: First Contact", "The Hunchback of Notre Dame", "Good Will Hunting", "L.A. Confidential",
    "Dr. Strangelove or: How I Learned to Stop Worrying and Love the Bomb", "Brazil", "Alien", "Heat",
    "Clerks", "Twister", "Evita", "Cop Land",
)  # fmt: skip


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def logged_steps() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for step in range(20, 1001, 20):
        decay = math.exp(-step / 300)
        row = {
            "phase": "sft",
            "step": step,
            "wall_s": step * 0.24,
            "learning_rate": 3e-3 * decay,
            "grad_norm": 1.0,
        }
        row |= {"rationale_loss": 0.5 + 3 * decay + rng.normal(0, 0.03), "head_loss": 2.2 + 0.8 * decay}
        row["loss"] = row["rationale_loss"] + 0.5 * row["head_loss"]
        rows.append(row)
        if step % 200 == 0:
            rows.append(
                {
                    "phase": "sft",
                    "step": step,
                    "wall_s": step * 0.24,
                    "validation/ndcg@10": 0.57 - 0.3 * decay,
                }
            )
    for step in range(10, 401, 10):
        row = {
            "phase": "rl",
            "step": step,
            "wall_s": step * 0.5,
            "value": 0.45 + 0.0004 * step + rng.normal(0, 0.02),
        }
        row |= {"kl": 0.0003 * step, "entropy": 1.2 - 0.001 * step, "ratio_clipped": 0.01, "reward": 0.5}
        if step % 50 == 0:
            row["validation/ndcg@10"] = 0.555 + 0.0001 * step
            rows.append(
                {
                    "phase": "sft_continued",
                    "step": step,
                    "wall_s": step * 0.5,
                    "validation/ndcg@10": 0.556 + step * 2e-5,
                }
            )
        rows.append(row)
    return rows


def report_users(users: int = 4, *, systems: tuple[str, ...] = ("sft", "rl", "sft_continued")) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows = []
    for user in range(users):
        order = rng.permutation(ITEMS)
        candidates = [
            {
                "item": int(item),
                "title": FILMS[item],
                "year": str(1980 + int(item)),
                "genres": ["Drama", "Comedy"],
                "label": int(place == ITEMS - 1),
                "systems": {
                    name: {
                        "score": float(rng.normal() + 0.9 * (place == ITEMS - 1)),
                        "rationale": "likes drama and comedy ; 5 of 10 match ; so yes , a good fit",
                    }
                    for name in systems
                },
            }
            for place, item in enumerate(order)
        ]
        history = [{"title": FILMS[int(i)], "year": "1996", "rating": float(1 + i % 5)} for i in rng.permutation(10)]
        rows.append(
            {"user": user, "source_user": str(100 + user), "history": history, "truth": int(order[-1]),
             "candidates": candidates}
        )  # fmt: skip
    return rows


def final_results(rl_shift: float = 0.03) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    base = rng.beta(2, 2, size=300)
    shifts = {
        "random": -0.30,
        "popularity": -0.05,
        "item_knn": 0.10,
        "sft": 0.0,
        "sft_continued": 0.01,
        "rl": rl_shift,
    }
    config = configuration.EvaluationConfig(bootstrap_samples=300, permutation_samples=500)
    metrics = ["ndcg@1", "ndcg@5", "ndcg@10", "hr@1", "hr@5", "hr@10", "mrr"]
    systems = {
        name: {metric: np.clip(base + shift + rng.normal(0, 0.05, 300), 0, 1) for metric in metrics}
        for name, shift in shifts.items()
    }
    curves = {
        name: {
            count: systems[name]["ndcg@10"] + gain
            for count, gain in (("greedy", 0.01), ("1", -0.02), ("2", 0), ("4", 0.01))
        }
        for name in ("sft", "rl")
    }
    provenance = evaluation_results.Provenance(
        data_hash="sha256:6b1f0c5e0a0e4c1f8d3b",
        candidate_hash="sha256:aa12",
        commit="0123abc+changes",
        command="r2rank eval --config configs/quickstart.py --run-dir runs/quickstart",
        training={
            "sft": {"steps": 1000, "wall_s": 240.0},
            "rl": {"steps": 400, "wall_s": 200.0, "tokens": 81920},
        },
        notes=["One seed."],
    )
    return evaluation_results.build_results(
        systems,
        [("rl", "sft"), ("rl", "sft_continued"), ("rl", "item_knn"), ("rl", "popularity")],
        config=config,
        candidate_items=ITEMS,
        seed=0,
        provenance=provenance,
        curves=curves,
    )
