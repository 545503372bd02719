"""What storing a model in a smaller type changes: its parameters and, through them, its logits and scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from r2rank_jax.config import ModelConfig
from r2rank_jax.errors import PretrainedError
from r2rank_jax.model.adapters import is_adapter
from r2rank_jax.model.transformer import extend, scores, vocabulary_kernel
from r2rank_jax.pretrained.weights import StoredDtype
from r2rank_jax.types import Array, Params

SEQUENCES, LENGTH = 4, 32
"""Size of the fixed sequences of tokens; a model of fewer positions gets shorter ones."""
_AT_ONCE = 1 << 22  # numbers


class ParameterChange:
    """Relative change of the parameters, accumulated while they are written."""

    def __init__(self, dtype: StoredDtype):
        self.dtype = dtype
        self.largest = 0.0
        """Largest |rounded - exact| / |exact| of one number."""
        self._squares, self._squared_changes = 0.0, 0.0

    @property
    def rms(self) -> float:
        """Root of the sum of squared changes over the sum of squares."""
        return float(np.sqrt(self._squared_changes / self._squares)) if self._squares else 0.0

    def watch(self, value: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
        """Wrap a function that returns tensors by name, so that the change of each is added.

        The function raises PretrainedError if a number of a tensor is finite, but too large for the stored type.
        """

        def watched(name: str) -> np.ndarray:
            tensor = value(name)
            numbers = tensor.reshape(-1)
            for start in range(0, numbers.size, _AT_ONCE):
                self._add(name, numbers[start : start + _AT_ONCE])
            return tensor

        return watched

    def _add(self, name: str, exact: np.ndarray) -> None:
        with np.errstate(over="ignore"):  # reported below
            rounded = exact.astype(self.dtype).astype(np.float64)
        exact = exact.astype(np.float64)
        if np.any(np.isinf(rounded) & np.isfinite(exact)):
            raise PretrainedError(
                f"every number must be within the range of {self.dtype}, got {np.abs(exact).max():.3g} in {name}; "
                "choose --dtype float32"
            )
        change, size = np.abs(rounded - exact), np.abs(exact)
        self.largest = max(self.largest, float(np.max(change[size > 0] / size[size > 0], initial=0.0)))
        self._squares += float(np.sum(size**2))
        self._squared_changes += float(np.sum(change**2))


@dataclass(frozen=True)
class OutputChange:
    """Largest |difference| between the outputs of the exact and of the rounded parameters on the fixed sequences."""

    name: str
    """"logits" or "scores"."""
    largest: float
    scale: float
    """Largest |value| with the exact parameters."""

    def __str__(self) -> str:
        return f"{self.name} by up to {self.largest:.2g} (the largest is {self.scale:.3g})"


def output_changes(
    config: ModelConfig, params: Params, dtype: StoredDtype, positions: int, *, head: bool, only_adapters: bool
) -> list[OutputChange]:
    """Run the model with its exact parameters and with the rounded ones, and compare.

    Both computations are in float32. The rounded parameters are held in the stored type.

    Args:
        config: of the model.
        params: exact parameters.
        dtype: type that they are rounded to.
        positions: longest sequence that the model supports.
        head: the scoring head is rounded too, and only scores are compared, as in a scorer. Without it, the head is
            stored exactly, and logits are compared as well.
        only_adapters: round the adapters and nothing else.
    """
    config = dataclasses.replace(config, dtype="float32", attention="einsum", remat="none")
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, (SEQUENCES, 1, 1, min(LENGTH, positions)))

    @jax.jit
    def outputs(params: Params) -> dict[str, Array]:
        places = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
        hidden = extend(config, params, jnp.asarray(tokens), places, jnp.ones(tokens.shape, bool))[0][:, 0, 0]
        result = {} if head else {"logits": hidden @ vocabulary_kernel(params).T.astype(jnp.float32)}
        return result | {"scores": scores(params, hidden[:, -1])}

    def stored(path: tuple[jax.tree_util.DictKey, ...], leaf: Array) -> Array:
        name = str(path[-1].key)
        rounded = is_adapter(name) if only_adapters else head or name != "score_head"
        return leaf.astype(dtype) if rounded else leaf

    with jax.default_matmul_precision("highest"):
        exact = jax.tree.map(np.asarray, outputs(params))
        rounded = jax.tree.map(np.asarray, outputs(jax.tree_util.tree_map_with_path(stored, params)))
    return [
        OutputChange(name, float(np.abs(rounded[name] - exact[name]).max()), float(np.abs(exact[name]).max()))
        for name in exact
    ]


def described(parameters: ParameterChange, outputs: list[OutputChange]) -> str:
    """One line about the rounding, for the command's output and the exported page."""
    if not parameters.largest:
        return f"{parameters.dtype} holds every parameter exactly"
    of_outputs = " and ".join(map(str, outputs))
    return (
        f"rounding to {parameters.dtype} changes parameters by up to {parameters.largest:.2%} "
        f"(RMS {parameters.rms:.2%}), and on {SEQUENCES} fixed sequences {of_outputs}"
    )
