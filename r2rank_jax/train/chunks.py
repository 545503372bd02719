"""Losses over lists and their gradients, with some items read at a time.

A user's prefix is read once. The rationales that follow it are read, differentiated and dropped a few items at a time,
while the gradients of the parameters and of the prefix's keys and values are summed in float32. The gradient of the
keys and values then goes back through the prefix once. The result is exact, with the memory of one chunk.

All scores of a list meet in one loss, so a chunk alone cannot compute the gradient of its scores. That gradient is
small, [U, N, G], and is computed first, at scores that the rollout has returned or that one forward pass computes (as
in GradCache for contrastive losses, Gao et al. 2021). Each chunk then propagates its part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from r2rank_jax.model.forward import Judgement, prefix_forward, read_rationales
from r2rank_jax.model.transformer import in_compute_dtype, item_scores
from r2rank_jax.model.transformer import scores as scores_of
from r2rank_jax.sharding import splits_parameters, sum_over_users
from r2rank_jax.train.context import UpdateContext
from r2rank_jax.train.trainable import join_params, split_params
from r2rank_jax.types import OF_ITEMS, OF_USERS, Array, KeyValues, ListBatch, Params, Rationales


@struct.dataclass
class Rows:
    """Prompts, their rationales, and the other inputs of the loss."""

    batch: ListBatch
    rationales: Rationales
    loss_inputs: Any = ()  # pytree of [U, N, ...]


Read = Callable[[Params, Any, KeyValues | None, Rows], Any]  # params, constants, prefix, rows -> pytree of [U, N, ...]


class ListScores(NamedTuple):
    """The scores of whole lists."""

    rationales: Array  # float32 [U, N, G]
    items: Array  # float32 [U, N]   of the item head

    @classmethod
    def of(cls, judged: Judgement) -> ListScores:
        return cls(judged.scores, judged.item_scores)


class Losses(NamedTuple):
    """The two parts of a loss. Shared constants are an argument, so that the functions close over no traced values."""

    of_tokens: Callable[[Params, Any, KeyValues | None, Rows], tuple[Array, Judgement]]  # a sum over rationales
    of_scores: Callable[[Any, ListScores, Rows], Array]  # couples the scores of a list


def gradients(
    context: UpdateContext,
    losses: Losses,
    params: Params,
    constants: Any,
    rows: Rows,
    scores: ListScores | None = None,
) -> tuple[Params, Judgement]:
    """Gradient of `losses.of_tokens + losses.of_scores`.

    Args:
        context: with `chunk_items` of N or more and parameters that are not split along fsdp, there is no loop.
        losses: the two parts.
        params: float32.
        constants: pytree that all rows share, not differentiated.
        rows: of the whole batch.
        scores: under `params`, if they are available. Otherwise a forward pass computes them, unless there is
            no loop.

    Returns:
        Gradients like `params`, with None for frozen parameters, and the judgement of all rows.
    """
    trainable, frozen = split_params(context.trained, params)
    # Left to XLA, a batch and parameters that are both split make it sum activations over devices in every layer.
    if context.chunk_items >= rows.batch.items.shape[1] and not splits_parameters(context.mesh):

        def whole_loss(trainable: Params) -> tuple[Array, Judgement]:
            of_tokens, judged = losses.of_tokens(join_params(trainable, frozen), constants, None, rows)
            return of_tokens + losses.of_scores(constants, ListScores.of(judged), rows), judged

        return jax.grad(whole_loss, has_aux=True)(trainable)

    if scores is None:
        scores = read_in_chunks(context, _read_scores(context), params, (), rows)
    d_scores = jax.grad(lambda s: losses.of_scores(constants, s, rows))(scores)

    def on_device(shared: tuple[Params, Params, Any], own: tuple[Rows, ListScores]) -> tuple[Params, Judgement]:
        return _sum_over_chunks(context, losses, *shared, *own)

    halves = in_compute_dtype(context.model, trainable), in_compute_dtype(context.model, frozen)
    return sum_over_users(context.mesh, on_device)((*halves, constants), (rows, d_scores))


def _sum_over_chunks(
    context: UpdateContext,
    losses: Losses,
    trainable: Params,
    frozen: Params,
    constants: Any,
    rows: Rows,
    d_scores: ListScores,
) -> tuple[Params, Judgement]:
    """Gradients of one device's users, and the judgement of their rows.

    Args:
        context: as in `gradients`.
        losses: the two parts.
        trainable: parameters in the type of the computation, None where they are frozen.
        frozen: the others.
        constants: pytree that all rows share.
        rows: of this device's users.
        d_scores: the gradient of `losses.of_scores`.
    """
    items = rows.batch.items.shape[1]

    def prefix_of(trainable: Params) -> tuple[Any, Array]:
        params = join_params(trainable, frozen)
        prefix = prefix_forward(context.model, params, rows.batch.prefix, rows.batch.prefix_length)
        return (prefix.k, prefix.v), prefix.valid

    kv, pull, valid = jax.vjp(prefix_of, trainable, has_aux=True)

    def visit(total: Any, inputs: tuple[Rows, ListScores]) -> tuple[Any, Judgement]:
        chunk, d_chunk_scores = inputs

        def loss(trainable: Params, kv: Any) -> tuple[Array, Judgement]:
            prefix = KeyValues(k=kv[0], v=kv[1], valid=valid)
            of_tokens, judged = losses.of_tokens(join_params(trainable, frozen), constants, prefix, chunk)
            by_score = jax.tree.map(jnp.vdot, d_chunk_scores, ListScores.of(judged))
            return of_tokens + by_score.rationales + by_score.items, judged

        grads, judged = jax.grad(loss, argnums=(0, 1), has_aux=True)(trainable, kv)
        return jax.tree.map(lambda sum_, x: sum_ + x.astype(jnp.float32), total, grads), judged

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (trainable, kv))
    chunks = _split(rows, d_scores, min(context.chunk_items, items))
    (total, d_kv), judged = jax.lax.scan(visit, zeros, chunks)
    (through_prefix,) = pull(jax.tree.map(lambda d, x: d.astype(x.dtype), d_kv, kv))
    return jax.tree.map(jnp.add, total, through_prefix), _join(judged, items)


def read_in_chunks(context: UpdateContext, read: Read, params: Params, constants: Any, rows: Rows) -> Any:
    """Apply `read` to all rows, without gradients; the other arguments are those of `gradients`."""
    items, model = rows.batch.items.shape[1], context.model
    if context.chunk_items >= items and not splits_parameters(context.mesh):
        return read(params, constants, None, rows)

    def on_device(shared: tuple[Params, Any], rows: Rows) -> tuple[tuple[()], Any]:
        params, constants = shared
        if context.chunk_items >= items:
            return (), read(params, constants, None, rows)
        prefix = prefix_forward(model, params, rows.batch.prefix, rows.batch.prefix_length)
        chunks = _split(rows, (), context.chunk_items)[0]
        return (), _join(jax.lax.map(lambda chunk: read(params, constants, prefix, chunk), chunks), items)

    return sum_over_users(context.mesh, on_device)((in_compute_dtype(model, params), constants), rows)[1]


def _read_scores(context: UpdateContext) -> Read:
    def read(params: Params, _: Any, prefix: KeyValues | None, chunk: Rows) -> ListScores:
        states = read_rationales(context.model, params, chunk.batch, chunk.rationales, prefix)
        return ListScores(scores_of(params, states.last), item_scores(params, states.item))

    return read


def _split(rows: Rows, per_row: Any, chunk_items: int) -> tuple[Rows, Any]:
    """[U, N, ...] -> [chunks, U, chunk_items, ...]. The last chunk is filled up with masked items.

    Arrays that belong to users, [U, ...], are repeated in every chunk.
    """
    users, items = rows.batch.items.shape
    chunks = -(-items // chunk_items)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * chunk_items - items), *[(0, 0)] * (x.ndim - 2)])
        return x.reshape(users, chunks, chunk_items, *x.shape[2:]).swapaxes(0, 1)

    def copy(x: Array) -> Array:
        return jnp.broadcast_to(x, (chunks, *x.shape))

    batch = rows.batch
    user_fields = {name: copy(getattr(batch, name)) for name in OF_USERS}
    item_fields = {name: cut(getattr(batch, name)) for name in OF_ITEMS}
    rationales, loss_inputs, per_row = jax.tree.map(cut, (rows.rationales, rows.loss_inputs, per_row))
    return Rows(ListBatch(**user_fields, **item_fields), rationales, loss_inputs), per_row


def _join(chunks: Any, items: int) -> Any:
    """The inverse: [chunks, U, chunk_items, ...] -> [U, N, ...]."""

    def one(x: Array) -> Array:
        x = x.swapaxes(0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :items]

    return jax.tree.map(one, chunks)
