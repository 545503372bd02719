"""`transformers.generate` and an update in torch at one shape, in a process in which JAX does not use the device.

    JAX_PLATFORMS=cpu python benchmarks/bench_peers.py --shape qwen2.5-1.5b --users 8

Weights are random, which takes the same time as trained ones. As many rows as fit are generated together, and the
update reads a few groups of rows. Both times are scaled to all rows. Prints one JSON line.
"""

from __future__ import annotations

import json
from statistics import median

import numpy as np
import peers
from workload import is_out_of_memory, parse, report

UPDATE_GROUPS = 2  # groups of `peers.ROWS` rows in the timed update


def main() -> None:
    shape, rounds, _ = parse(__doc__)
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = peers.random_torch(shape.model, shape.model.dtype, device)
    rng = np.random.default_rng(0)
    prompts = rng.integers(2, shape.model.vocabulary, (shape.rows, shape.prefix + shape.suffix))
    rows = shape.rows
    while True:
        try:
            elapsed_s = median(peers.generate_seconds(model, prompts[:rows], shape.length, 1))
            break
        except RuntimeError as error:
            if not is_out_of_memory(error) or rows % 2:
                raise
            rows //= 2
            torch.cuda.empty_cache()
    generate_s = elapsed_s * shape.rows / rows
    report("generate_s", generate_s)
    figures = {"generate_s": generate_s, "generate_rows": rows}
    some = min(UPDATE_GROUPS * peers.ROWS, shape.rows)
    tokens = rng.integers(2, shape.model.vocabulary, (some, shape.prefix + shape.suffix + shape.length))
    try:
        seconds, peak = peers.update_seconds(model, tokens, shape.length, np.ones(some), min(rounds, 2))
        figures |= {"update_s": median(seconds) * shape.rows / some, "update_rows": some, "update_peak": peak or 0}
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print(f"torch: an update of {peers.ROWS} rows does not fit into memory")
    print(json.dumps(figures | {"device": device}))


if __name__ == "__main__":
    main()
