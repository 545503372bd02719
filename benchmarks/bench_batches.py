"""Measure the padding that length buckets save, and the lists per second that threads and workers encode.

    python benchmarks/bench_batches.py --data data/ml-100k

By default, prompts are the quickstart's, with a tokenizer trained on the traces. With `--tokenizer FOLDER`, that
tokenizer is used with larger limits.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from r2rank_jax.config import DataConfig, RunConfig
from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.batches.length_buckets import WINDOW
from r2rank_jax.data.batches.pipeline import list_batches
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.data.prepared.traces import read_traces
from r2rank_jax.data.prompts.from_dataset import corpus
from r2rank_jax.data.prompts.tokenizer import FastTokenizer, as_text_tokenizer, train_tokenizer

QUICKSTART: RunConfig = runpy.run_path(str(Path(__file__).parents[1] / "configs" / "quickstart.py"))["config"]()
LARGER = DataConfig(
    prefix_tokens=160, suffix_tokens=32, rationale_tokens=40
)  # for a tokenizer that was not trained on films
USERS, CANDIDATES = 16, 20


def main() -> None:
    """Print one row per setting, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder with traces.jsonl")
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer.json")
    parser.add_argument("--batches", type=int, default=8 * WINDOW)
    args = parser.parse_args()
    dataset = load(args.data, "leave_one_out")
    if args.tokenizer is None:
        config = QUICKSTART.data
        traces = read_traces(args.data / "traces.jsonl", dataset, config.template)
        texts = corpus(dataset, traces, config.history_items)
        tokenizer = as_text_tokenizer(train_tokenizer(texts, QUICKSTART.model.vocabulary))
    else:
        backend = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
        tokenizer, config = FastTokenizer(backend, pad=0, stop=0), LARGER
    rows = []
    for buckets, workers in ((1, 0), (1, 1), (1, 2), (2, 0), (4, 0), (8, 0), (4, 2)):
        encoder = Encoder(tokenizer, dataset, replace(config, length_buckets=buckets))
        settings: dict[str, Any] = {"batch_users": USERS, "candidate_items": CANDIDATES, "seed": 0, "workers": workers}
        with closing(list_batches(dataset, encoder, **settings)) as batches:
            row = {"buckets": buckets, "workers": workers} | measure(batches, config, args.batches)
        rows.append(row)
        print("  ".join(f"{name} {value:>7}" for name, value in row.items()))
    print(json.dumps({"benchmark": "batches", "data": dataset.data_hash[:12], "rows": rows}))


def measure(batches: Iterator[Any], config: DataConfig, count: int) -> dict[str, Any]:
    """Tokens computed, as a fraction of full padding to P, S and T, and lists per second after the first batch."""
    began = time.perf_counter()
    next(batches)
    first_s = time.perf_counter() - began
    computed, shapes = 0, set()
    for batch in islice(batches, count - 1):
        prefix, suffix = batch.prefix.shape[1], batch.suffix.shape[2]
        shapes.add((prefix, suffix))
        computed += prefix + CANDIDATES * (suffix + config.rationale_tokens)
    full = config.prefix_tokens + CANDIDATES * (config.suffix_tokens + config.rationale_tokens)
    return {
        "computed": round(computed / full / (count - 1), 4),
        "shapes": len(shapes),
        "first_s": round(first_s, 2),
        "lists_per_s": round(USERS * (count - 1) / (time.perf_counter() - began - first_s)),
    }


if __name__ == "__main__":
    main()
