"""Compares one RL step in float32 between two backends: one stores the values, the other compares its own to them.

    JAX_PLATFORMS=cpu python benchmarks/step_values.py FILE.npz --write
    python benchmarks/step_values.py FILE.npz

The comparison uses the weights and the rollout in the file. Prints one JSON line with the largest differences of
log-probabilities, scores, advantages and logged metrics, and the largest relative error of a leaf of the parameter
change.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workload import REFERENCE, make, run_config, turn

from r2rank_jax.model.forward import judge
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.sharding import make_mesh, replicated
from r2rank_jax.train.rl_step import make_rl_steps
from r2rank_jax.train.state import fresh_state, start_from


def main() -> int:
    with turn(alone=False):
        return compare()


def compare() -> int:
    path, writes = Path(sys.argv[1]), "--write" in sys.argv[2:]
    shape = dataclasses.replace(REFERENCE, users=2, wave_tokens=64)
    config = run_config(shape)
    mesh = make_mesh(config.mesh)
    params, batch, _ = make(shape)
    write = make_rollout(mesh, config, shape.model.vocabulary)
    stored = {} if writes else dict(np.load(path))
    if not writes:  # random bits are equal on all backends, but values computed from them may differ by rounding
        params = _like(params, "params", stored)
    params = jax.device_put(params, replicated(mesh))
    rollout = write(params, batch, jax.random.key(0))
    own_tokens = np.asarray(rollout.rationales.tokens)
    if not writes:
        rollout = _like(rollout, "rollout", stored)
    judged = jax.jit(lambda params: judge(shape.model, params, batch, rollout.rationales))(params)
    state = start_from(fresh_state(mesh, config.model, config.rl.optimizer, 2, 0), params)
    assess, update = make_rl_steps(mesh, config)
    assessment = assess(state.params, params, batch, rollout)
    before = jax.tree.map(np.asarray, params)
    state, metrics = update(state, params, batch, rollout, assessment)
    state, metrics = update(state, params, batch, rollout, assessment)  # the first step's learning rate is zero
    change = jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, before)
    values = {
        **_flat(before, "params"),
        **_flat(rollout, "rollout"),
        **_flat(change, "change"),
        "logp": np.asarray(judged.logp),
        "scores": np.asarray(judged.scores),
        "advantages": np.asarray(assessment.advantages),
        **{f"metric/{name}": np.asarray(value) for name, value in metrics.items()},
    }
    if writes:
        np.savez(path, **values)  # type: ignore[arg-type]
        print(json.dumps({"wrote": str(path.name), "backend": jax.default_backend()}))
        return 0
    errors = {name: float(np.max(np.abs(values[name] - stored[name]))) for name in ("logp", "scores", "advantages")}
    errors |= {n: float(abs(values[n] - stored[n])) for n in values if n.startswith("metric/")}
    errors["change, worst leaf, relative"] = max(
        float(np.linalg.norm(values[n] - stored[n]) / max(float(np.linalg.norm(stored[n])), 1e-30))
        for n in values
        if n.startswith("change")
    )
    errors["same sampled tokens"] = float(np.mean(own_tokens == stored["rollout.rationales.tokens"]))
    precision = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION", "default")
    print(json.dumps({"backend": jax.default_backend(), "precision": precision} | errors))
    return 0


def _flat(tree: Any, name: str) -> dict[str, np.ndarray]:
    """Leaves of a tree by name, as NumPy arrays."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {name + _key(path): np.asarray(leaf) for path, leaf in leaves}


def _like(tree: Any, name: str, stored: dict[str, np.ndarray]) -> Any:
    """The tree with its leaves replaced by the stored ones."""
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(stored[name + _key(path)]), tree)


def _key(path: Any) -> str:
    return "." + jax.tree_util.keystr(path, simple=True, separator=".")


if __name__ == "__main__":
    sys.exit(main())
