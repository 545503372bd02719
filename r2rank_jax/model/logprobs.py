"""What the model says of given tokens: never [rows, T, V] logits at once, and few for padding.

Rationales differ in length, so nearly half of a batch's slots are padding, and with a vocabulary wider than the model
the logits are half of all work. Each user's real slots are therefore brought to the front, and only as many chunks of
slots are visited as the longest user needs; what fits into one chunk is read whole. The trip count is known at run time
only, which plain reverse-mode differentiation cannot follow; the derivative is written out instead, and recomputes each
chunk's logits.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array

# Tokens whose float32 logits are held at once, in all rows together.
CHUNK_TOKENS = 512


class TokenStatistics(NamedTuple):
    """Of each token, in nats; float32 [U, ...], 0 on padding."""

    logp: Array  # log p(token)
    entropy: Array  # H(p), of the distribution that the token was drawn from
    kl: Array  # KL(p || reference), over the whole vocabulary; 0 without a reference


def token_statistics(
    hidden: Array,
    kernel: Array,
    targets: Array,
    real: Array,
    reference: tuple[Array, Array] | None = None,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> TokenStatistics:
    """Log-probabilities of tokens, and what is known of the distributions behind them.

    Differentiable in `hidden` and `kernel` by every result; the reference is a constant.

    Args:
        hidden: [U, ..., D] states that predict the targets.
        kernel: [V, D].
        targets: int32 [U, ...].
        real: bool [U, ...]; False = padding.
        reference: another model's hidden states [U, ..., D'] and kernel [V, D'].
        temperature: divides all logits.
        chunk_tokens: memory bound, rounded to whole slots of every user.
    """
    shape = targets.shape
    slots = math.prod(shape[1:])
    width = min(slots, max(1, chunk_tokens // shape[0]))
    flat = lambda x: x.reshape(shape[0], slots, *x.shape[len(shape) :])  # noqa: E731
    if reference is not None:
        reference = flat(reference[0]), reference[1]
    found = _statistics(flat(hidden), kernel, flat(targets), flat(real), reference, temperature, width)
    return TokenStatistics(*(part.reshape(shape) for part in found))


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _statistics(
    hidden: Array,
    kernel: Array,
    targets: Array,
    real: Array,
    reference: tuple[Array, Array] | None,
    temperature: float,
    width: int,
) -> tuple[Array, ...]:
    """`token_statistics` on flat slots: hidden [U, L, D], targets and real [U, L]."""
    return _forward(hidden, kernel, targets, real, reference, temperature, width)[0]


def _forward(
    hidden: Array, kernel: Array, targets: Array, real: Array, reference: Any, temperature: float, width: int
) -> tuple[tuple[Array, ...], Any]:
    order, chunks = _real_first(real, width)

    def visit(chunk: Array, found: Array) -> Array:
        slots = _slots(order, chunk, width)
        logits = _logits(_take(hidden, slots), kernel, temperature)
        total = jax.nn.logsumexp(logits, axis=-1)
        log_p = logits - total[..., None]
        target = jnp.take_along_axis(log_p, _take(targets, slots)[..., None], axis=-1)[..., 0]
        p = jnp.exp(log_p)
        entropy = -jnp.sum(p * log_p, axis=-1)
        kl, ref_total = jnp.zeros_like(total), jnp.zeros_like(total)
        if reference is not None:
            ref_logits = _logits(_take(reference[0], slots), reference[1], temperature)
            ref_total = jax.nn.logsumexp(ref_logits, axis=-1)
            log_q = ref_logits - ref_total[..., None]
            kl = jnp.sum(p * (log_p - log_q), axis=-1)  # differences first: equal policies give exactly 0
        here = jnp.stack([target, entropy, kl, total, ref_total])
        return jax.lax.dynamic_update_slice_in_dim(found, here, chunk * width, axis=2)

    found = _for_each(chunks, visit, jnp.zeros((5, *order.shape), jnp.float32), single=width == real.shape[1])
    place = _places(order, real)
    parts = tuple(jnp.where(real, _take(part, place), 0.0) for part in found)
    return parts[:3], (hidden, kernel, targets, real, reference, parts[1:])


def _backward(temperature: float, width: int, saved: Any, cotangents: tuple[Array, ...]) -> tuple[Any, ...]:
    """With logits z, p = softmax(z) and q the reference's:

    ∂logp_t/∂z = onehot_t − p,   ∂H/∂z = −p (log p + H),   ∂KL/∂z = p (log p − log q − KL).
    """
    hidden, kernel, targets, real, reference, known = saved
    order, chunks = _real_first(real, width)
    per_token = jnp.stack([*(jnp.where(real, c, 0.0) for c in cotangents), *known], axis=-1)  # [U, L, 7]
    vocabulary = jnp.arange(kernel.shape[0])

    def visit(chunk: Array, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
        slots = _slots(order, chunk, width)
        # Padding of the users with fewer tokens, and what the last chunk reaches beyond the last slot: it may hold
        # anything, and zero times infinity is not zero.
        inside = ((chunk * width + jnp.arange(width) < real.shape[1]) & _take(real, slots))[..., None]
        h = jnp.where(inside, _take(hidden, slots), 0.0)
        here = jnp.where(inside, _take(per_token, slots), 0.0)
        by_logp, by_entropy, by_kl, entropy, kl, total, ref_total = jnp.split(here, here.shape[-1], axis=-1)
        log_p = _logits(h, kernel, temperature) - total
        p = jnp.where(inside, jnp.exp(log_p), 0.0)
        slope = by_logp * ((vocabulary == _take(targets, slots)[..., None]) - p) - by_entropy * p * (log_p + entropy)
        if reference is not None:
            ref_h = jnp.where(inside, _take(reference[0], slots), 0.0)
            log_q = _logits(ref_h, reference[1], temperature) - ref_total
            slope += by_kl * p * (log_p - log_q - kl)
        slope = (slope / temperature).astype(h.dtype)
        flat_slope, flat_h = slope.reshape(-1, slope.shape[-1]), h.reshape(-1, h.shape[-1])
        d_hidden = jnp.matmul(flat_slope, kernel.astype(h.dtype), preferred_element_type=jnp.float32).reshape(h.shape)
        # [D, V] and not [V, D]: transposing the narrow factor is twice as fast on CPU as transposing the wide one.
        d_kernel = jnp.matmul(flat_h.T, flat_slope, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(so_far[0], d_hidden, chunk * width, axis=1), so_far[1] + d_kernel

    start = jnp.zeros((*order.shape, hidden.shape[-1]), jnp.float32), jnp.zeros(kernel.shape[::-1], jnp.float32)
    d_hidden, d_kernel = _for_each(chunks, visit, start, single=width == real.shape[1])
    d_hidden = _take(d_hidden, _places(order, real)).astype(hidden.dtype)
    nothing = jax.tree.map(jnp.zeros_like, reference)
    return d_hidden, d_kernel.T.astype(kernel.dtype), None, None, nothing


_statistics.defvjp(_forward, _backward)


def _real_first(real: Array, width: int) -> tuple[Array, Array]:
    """Each user's slots, real ones first, padded to whole chunks with slot 0; and the chunks that hold real slots."""
    order = jnp.argsort(~real, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, -real.shape[1] % width)))
    longest = jnp.max(jnp.sum(real, axis=1, dtype=jnp.int32))
    return order, (longest + width - 1) // width


def _for_each(chunks: Array, visit: Any, start: Any, *, single: bool) -> Any:
    """Visit the chunks in turn. Where all slots fit into one there is no loop: collectives of sharded parameters stay
    outside of loops then, where XLA can schedule them (several fake CPU devices deadlock otherwise)."""
    return visit(jnp.int32(0), start) if single else jax.lax.fori_loop(0, chunks, visit, start)


def _places(order: Array, real: Array) -> Array:
    """Where each slot went."""
    return jnp.argsort(order[:, : real.shape[1]], axis=1)


def _slots(order: Array, chunk: Array, width: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(order, chunk * width, width, axis=1)


def _take(x: Array, slots: Array) -> Array:
    """x [U, L] or [U, L, D] at slots [U, C]."""
    return jnp.take_along_axis(x, slots.reshape(slots.shape + (1,) * (x.ndim - 2)), axis=1)


def _logits(hidden: Array, kernel: Array, temperature: float) -> Array:
    """float32 [U, C, V]."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = jnp.matmul(flat, kernel.astype(hidden.dtype).T, preferred_element_type=jnp.float32)
    return logits.reshape(*hidden.shape[:-1], -1) / temperature
