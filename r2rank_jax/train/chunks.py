"""Losses over lists and their gradients, reading some items at a time.

A user's prefix is read once. The rationales on top of it are read, differentiated and forgotten a few items at a time,
while gradients of the parameters and of the prefix's keys and values add up in float32; then the latter go back through
the prefix once. Exact, with the memory of one chunk.

A list's scores meet in one loss, so a chunk cannot know its scores' gradient by itself. That gradient is small,
[U, N, G], and is taken first, at scores that the rollout already knows or that one forward pass finds (as
GradCache does for contrastive losses, Gao et al. 2021); each chunk then pulls its part of it back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r2rank_jax.config import ModelConfig, Trained
from r2rank_jax.model.forward import Judgement, prefix_forward, read_rationales
from r2rank_jax.model.transformer import in_compute_dtype
from r2rank_jax.model.transformer import scores as scores_of
from r2rank_jax.sharding import sum_over_users
from r2rank_jax.train.trainable import join, split
from r2rank_jax.types import OF_ITEMS, OF_USERS, Array, KeyValues, ListBatch, Params, Rationales


@struct.dataclass
class Rows:
    """Prompts, rationales and what else travels with them."""

    batch: ListBatch
    said: Rationales
    more: Any = ()  # pytree of [U, N, ...]


Read = Callable[[Params, Any, KeyValues | None, Rows], Any]  # params, constants, prefix, rows -> pytree of [U, N, ...]


class Losses(NamedTuple):
    """What is differentiated; the constants that all rows share are passed along, so that nothing is closed over."""

    of_tokens: Callable[[Params, Any, KeyValues | None, Rows], tuple[Array, Judgement]]  # a sum over rationales
    of_scores: Callable[[Any, Array, Rows], Array]  # of [U, N, G]; couples the scores of a list


def gradients(
    mesh: Mesh,
    model: ModelConfig,
    losses: Losses,
    params: Params,
    constants: Any,
    rows: Rows,
    scores: Array | None = None,
    *,
    chunk_items: int,
    trained: Trained = "all",
) -> tuple[Params, Judgement]:
    """Gradient of `losses.of_tokens + losses.of_scores`.

    Args:
        mesh: rows are split over users.
        model: shape of the model, which reads the prefix.
        losses: the two parts.
        params: float32.
        constants: pytree that all rows share, not differentiated.
        rows: of the whole batch.
        scores: [U, N, G] under `params`, where they are known already; else a forward finds them, unless all items are
            read without a loop.
        chunk_items: items of each user that are read together; N or more: all at once, without a loop where parameters
            are not split along fsdp.
        trained: what is differentiated.

    Returns:
        Gradients like `params`, with None for what is not trained, and the judgement of all rows.
    """
    items = rows.batch.items.shape[1]
    moved, rest = split(trained, params)
    # Left to XLA, a batch and parameters that are both split make it add up activations in every layer.
    if chunk_items >= items and mesh.shape["fsdp"] == 1:

        def whole_loss(moved: Params) -> tuple[Array, Judgement]:
            of_tokens, judged = losses.of_tokens(join(moved, rest), constants, None, rows)
            return of_tokens + losses.of_scores(constants, judged.scores, rows), judged

        return jax.grad(whole_loss, has_aux=True)(moved)

    if scores is None:
        scores = read_in_chunks(mesh, model, _read_scores(model), params, (), rows, chunk_items=chunk_items)
    by_score = jax.grad(lambda s: losses.of_scores(constants, s, rows))(scores)

    def on_device(shared: tuple[Params, Params, Any], own: tuple[Rows, Array]) -> tuple[Params, Judgement]:
        moved, rest, constants = shared
        rows, by_score = own

        def prefix_of(moved: Params) -> tuple[Any, Array]:
            prefix = prefix_forward(model, join(moved, rest), rows.batch.prefix, rows.batch.prefix_length)
            return (prefix.k, prefix.v), prefix.valid

        kv, pull, valid = jax.vjp(prefix_of, moved, has_aux=True)

        def visit(so_far: Any, chunk: tuple[Rows, Array]) -> tuple[Any, Judgement]:
            here, slope = chunk

            def loss(moved: Params, kv: Any) -> tuple[Array, Judgement]:
                prefix = KeyValues(k=kv[0], v=kv[1], valid=valid)
                of_tokens, judged = losses.of_tokens(join(moved, rest), constants, prefix, here)
                return of_tokens + jnp.vdot(slope, judged.scores), judged

            found, judged = jax.grad(loss, argnums=(0, 1), has_aux=True)(moved, kv)
            return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), so_far, found), judged

        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (moved, kv))
        (total, d_kv), judged = jax.lax.scan(visit, nothing, _split(rows, by_score, min(chunk_items, items)))
        (through_prefix,) = pull(jax.tree.map(lambda d, x: d.astype(x.dtype), d_kv, kv))
        return jax.tree.map(jnp.add, total, through_prefix), _join(judged, items)

    halves = in_compute_dtype(model, moved), in_compute_dtype(model, rest)
    return sum_over_users(mesh, on_device)((*halves, constants), (rows, by_score))


def read_in_chunks(
    mesh: Mesh, model: ModelConfig, read: Read, params: Params, constants: Any, rows: Rows, *, chunk_items: int
) -> Any:
    """What `read` finds in all rows, without gradients; arguments as in `gradients`."""
    items = rows.batch.items.shape[1]
    if chunk_items >= items and mesh.shape["fsdp"] == 1:
        return read(params, constants, None, rows)

    def on_device(shared: tuple[Params, Any], rows: Rows) -> tuple[tuple[()], Any]:
        params, constants = shared
        if chunk_items >= items:
            return (), read(params, constants, None, rows)
        prefix = prefix_forward(model, params, rows.batch.prefix, rows.batch.prefix_length)
        found = jax.lax.map(lambda here: read(params, constants, prefix, here), _split(rows, (), chunk_items)[0])
        return (), _join(found, items)

    return sum_over_users(mesh, on_device)((in_compute_dtype(model, params), constants), rows)[1]


def _read_scores(model: ModelConfig) -> Read:
    def read(params: Params, _: Any, prefix: KeyValues | None, here: Rows) -> Array:
        return scores_of(params, read_rationales(model, params, here.batch, here.said, prefix).last)

    return read


def _split(rows: Rows, also: Any, chunk_items: int) -> tuple[Rows, Any]:
    """[U, N, ...] -> [chunks, U, chunk_items, ...]; what the last chunk lacks is masked items. What belongs to users
    comes with every chunk."""
    users, items = rows.batch.items.shape
    chunks = -(-items // chunk_items)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * chunk_items - items), *[(0, 0)] * (x.ndim - 2)])
        return x.reshape(users, chunks, chunk_items, *x.shape[2:]).swapaxes(0, 1)

    def copy(x: Array) -> Array:
        return jnp.broadcast_to(x, (chunks, *x.shape))

    batch = rows.batch
    per_user = {name: copy(getattr(batch, name)) for name in OF_USERS}
    per_item = {name: cut(getattr(batch, name)) for name in OF_ITEMS}
    said, more, also = jax.tree.map(cut, (rows.said, rows.more, also))
    return Rows(batch=ListBatch(**per_user, **per_item), said=said, more=more), also


def _join(chunks: Any, items: int) -> Any:
    """The inverse: [chunks, U, chunk_items, ...] -> [U, N, ...]."""

    def one(x: Array) -> Array:
        x = x.swapaxes(0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :items]

    return jax.tree.map(one, chunks)
