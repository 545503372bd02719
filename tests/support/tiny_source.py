"""A tiny source in RecBole's exact atomic form, with the traps of the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

USERS, ITEMS = 40, 60
INTER_HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM_HEADER = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
TRAPS = {
    1: "Usual Suspects, The",
    2: "unkonwn",
    3: "Truth About Cats &amp; Dogs, The",
    4: "Say <stop> and <pad>",
    6: "",
}
Row = tuple[int, int, int, int]  # source user, source item, rating, timestamp


def tiny_rows() -> list[Row]:
    """40 users of two tastes, 12 to 20 interactions each, shuffled, with ties in time; the same on every call."""
    rng = np.random.default_rng(7)
    rows: list[Row] = []
    for user in range(1, USERS + 1):
        taste = np.where((np.arange(ITEMS) % 2) == user % 2, 6.0, 1.0) / (1 + np.arange(ITEMS) / 20)
        chosen = rng.choice(ITEMS, size=int(rng.integers(12, 21)), replace=False, p=taste / taste.sum())
        start = int(rng.integers(0, 50)) * 20
        times = 880_000_000 + np.sort(start + rng.integers(0, 12, size=len(chosen)) * 20)
        for item, time in zip(chosen, times, strict=True):
            liked = 4 if item % 2 == user % 2 else 2
            rows.append((user, int(item) + 1, int(liked + rng.integers(0, 2)), int(time)))
    return [rows[i] for i in rng.permutation(len(rows))]


def write_raw(folder: Path, rows: list[Row] | None = None) -> Path:
    """Write `.inter` and `.item`; item k of taste k % 2, with genres to match."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, row)) + "\n" for row in (tiny_rows() if rows is None else rows)]
    (folder / "tiny.inter").write_text(INTER_HEADER + "".join(lines), encoding="utf-8")
    items = [
        f"{k}\t{TRAPS.get(k, f'Film {chr(64 + k)}{k}')}\t{1940 + k}\t{'Comedy Drama' if k % 2 else 'Sci-Fi Horror'}\n"
        for k in range(1, ITEMS + 1)
    ]
    (folder / "tiny.item").write_text(ITEM_HEADER + "".join(items), encoding="utf-8")
    return folder
