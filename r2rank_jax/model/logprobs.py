"""What the model says of given tokens: never [rows, T, V] logits at once, and few for padding.

Rationales differ in length, so nearly half of a batch's slots are padding, and with a vocabulary wider than the model
the logits are half of all work. Each user's real slots are therefore brought to the front, and only as many chunks of
slots are visited as the longest user needs; what fits into one chunk is read whole. The trip count is known at run time
only, which plain reverse-mode differentiation cannot follow; the derivatives are written out instead.

A loss that is a sum over tokens (`token_loss`) is differentiated while a chunk's logits are at hand, as Liger's fused
cross-entropy does (Hsu et al. 2024). Any other function of `token_statistics` has to make them a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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


# Statistics, what else is known of the same tokens, and of all of them -> the loss of each token.
OfToken = Callable[[TokenStatistics, Any, Any], Array]


class TokenLoss(NamedTuple):
    """A loss that asks nothing of other tokens."""

    of_token: OfToken  # elementwise; closes over no traced values
    known: Any  # pytree of [U, ...] like the tokens, constants
    shared: Any  # pytree, constants


class _Tokens(NamedTuple):
    """Flat slots: all that the model's parameters have no part in."""

    targets: Array  # int32 [U, L]
    real: Array  # bool [U, L]
    reference: tuple[Array, Array] | None  # [U, L, D'], [V, D']
    known: Any  # pytree of [U, L]
    shared: Any  # pytree


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
    tokens, width = _flat(targets, real, reference, (), (), chunk_tokens)
    found = _statistics(hidden.reshape(*tokens.targets.shape, hidden.shape[-1]), kernel, tokens, temperature, width)
    return TokenStatistics(*(part.reshape(targets.shape) for part in found))


def token_loss(
    loss: TokenLoss,
    hidden: Array,
    kernel: Array,
    targets: Array,
    real: Array,
    reference: tuple[Array, Array] | None = None,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Array, TokenStatistics]:
    """The sum of a loss over real tokens, whose gradient costs no second look at the logits.

    Args:
        loss: what is summed; the other arguments are those of `token_statistics`.
        hidden: [U, ..., D].
        kernel: [V, D].
        targets: int32 [U, ...].
        real: bool [U, ...].
        reference: [U, ..., D'] and [V, D'].
        temperature: divides all logits.
        chunk_tokens: memory bound.

    Returns:
        float32 [], differentiable in `hidden` and `kernel`; and the statistics, which are not.
    """
    tokens, width = _flat(targets, real, reference, loss.known, loss.shared, chunk_tokens)
    flat = hidden.reshape(*tokens.targets.shape, hidden.shape[-1])
    total, found = _loss(loss.of_token, flat, kernel, tokens, temperature, width)
    return total, TokenStatistics(*(jax.lax.stop_gradient(part).reshape(targets.shape) for part in found))


def _flat(
    targets: Array, real: Array, reference: Any, known: Any, shared: Any, chunk_tokens: int
) -> tuple[_Tokens, int]:
    """All slots of a user in one row, and how many of them make a chunk."""
    users, slots = targets.shape[0], math.prod(targets.shape[1:])
    flat = lambda x: x.reshape(users, slots)  # noqa: E731
    if reference is not None:
        reference = reference[0].reshape(users, slots, reference[0].shape[-1]), reference[1]
    tokens = _Tokens(flat(targets), flat(real), reference, jax.tree.map(flat, known), shared)
    return tokens, min(slots, max(1, chunk_tokens // max(users, 1)))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _statistics(hidden: Array, kernel: Array, tokens: _Tokens, temperature: float, width: int) -> TokenStatistics:
    return _visit_all(None, hidden, kernel, tokens, temperature, width)[0]


def _statistics_forward(hidden: Array, kernel: Array, tokens: _Tokens, temperature: float, width: int) -> Any:
    return _statistics(hidden, kernel, tokens, temperature, width), (hidden, kernel, tokens)


def _statistics_backward(temperature: float, width: int, saved: Any, cotangents: TokenStatistics) -> Any:
    """The cotangents make it a sum over tokens."""
    hidden, kernel, tokens = saved

    def of_token(found: TokenStatistics, by: TokenStatistics, _: Any) -> Array:
        return found.logp * by.logp + found.entropy * by.entropy + found.kl * by.kl

    tokens = tokens._replace(known=cotangents)
    return *_visit_all(of_token, hidden, kernel, tokens, temperature, width)[2:], None


_statistics.defvjp(_statistics_forward, _statistics_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def _loss(
    of_token: OfToken, hidden: Array, kernel: Array, tokens: _Tokens, temperature: float, width: int
) -> tuple[Array, TokenStatistics]:
    found = _visit_all(None, hidden, kernel, tokens, temperature, width)[0]
    return jnp.sum(jnp.where(tokens.real, of_token(found, tokens.known, tokens.shared), 0.0)), found


def _loss_forward(
    of_token: OfToken, hidden: Array, kernel: Array, tokens: _Tokens, temperature: float, width: int
) -> Any:
    found, loss, d_hidden, d_kernel = _visit_all(of_token, hidden, kernel, tokens, temperature, width)
    return (loss, found), (d_hidden, d_kernel)


def _loss_backward(of_token: OfToken, temperature: float, width: int, saved: Any, cotangents: Any) -> Any:
    return *((cotangents[0] * d).astype(d.dtype) for d in saved), None


_loss.defvjp(_loss_forward, _loss_backward)


def _visit_all(
    of_token: OfToken | None, hidden: Array, kernel: Array, tokens: _Tokens, temperature: float, width: int
) -> tuple[TokenStatistics, Array, Array, Array]:
    """One pass over all chunks. Returns statistics [U, L]; and of `of_token`, if there is one, the sum and its
    derivatives by hidden states [U, L, D] and kernel [V, D].

    With logits z, p = softmax(z) and q the reference's:

    ∂logp_t/∂z = onehot_t − p,   ∂H/∂z = −p (log p + H),   ∂KL/∂z = p (log p − log q − KL).
    """
    real = tokens.real
    if not real.size:
        return TokenStatistics(*3 * [jnp.zeros(real.shape)]), jnp.zeros(()), hidden, jnp.zeros_like(kernel)
    order, chunks = _real_first(real, width)
    vocabulary = jnp.arange(kernel.shape[0])

    def visit(chunk: Array, so_far: Any) -> Any:
        statistics, loss, d_hidden, d_kernel = so_far
        slots = _slots(order, chunk, width)
        # Padding of the users with fewer tokens, and what the last chunk reaches beyond the last slot: it may hold
        # anything, and zero times infinity is not zero.
        inside = (chunk * width + jnp.arange(width) < real.shape[1]) & _take(real, slots)
        real_here = inside.reshape(-1)

        def here(x: Array) -> Array:  # [U, L, ...] -> [M, ...], the slots of this chunk
            taken = _take(x, slots)
            return jnp.where(_like(inside, taken), taken, 0).reshape(-1, *x.shape[2:])

        h, targets = here(hidden), here(tokens.targets)[:, None]
        log_p = _log_probabilities(h, kernel, temperature)  # [M, V]
        p = jnp.exp(log_p)
        entropy = -jnp.sum(p * log_p, axis=-1)
        log_ratio, kl = jnp.zeros(()), jnp.zeros_like(entropy)
        if tokens.reference is not None:
            log_ratio = log_p - _log_probabilities(here(tokens.reference[0]), tokens.reference[1], temperature)
            kl = jnp.sum(p * log_ratio, axis=-1)  # differences first: equal policies give exactly 0
        logp = jnp.take_along_axis(log_p, targets, axis=-1)[:, 0]
        found = TokenStatistics(*(jnp.where(real_here, part, 0.0) for part in (logp, entropy, kl)))
        shaped = jnp.stack(found).reshape(3, *inside.shape)
        statistics = jax.lax.dynamic_update_slice_in_dim(statistics, shaped, chunk * width, axis=2)
        if of_token is None:
            return statistics, loss, d_hidden, d_kernel

        def total(found: TokenStatistics) -> Array:
            return jnp.sum(jnp.where(real_here, of_token(found, jax.tree.map(here, tokens.known), tokens.shared), 0.0))

        value, by = jax.value_and_grad(total)(found)
        by_logp, by_entropy, by_kl = (slope[:, None] for slope in by)
        slope = by_logp * ((vocabulary == targets) - p) - by_entropy * p * (log_p + entropy[:, None])
        slope += by_kl * p * (log_ratio - kl[:, None])
        slope = jnp.where(real_here[:, None], slope / temperature, 0.0).astype(h.dtype)
        by_h = jnp.matmul(slope, kernel.astype(h.dtype), preferred_element_type=jnp.float32)
        # [D, V] and not [V, D]: transposing the narrow factor is twice as fast on CPU as transposing the wide one.
        d_kernel += jnp.matmul(h.T, slope, preferred_element_type=jnp.float32)
        shaped = by_h.reshape(*inside.shape, -1)
        d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, shaped, chunk * width, axis=1)
        return statistics, loss + value, d_hidden, d_kernel

    nothing = jnp.zeros((3, *order.shape)), jnp.zeros(()), jnp.zeros((*order.shape, hidden.shape[-1]))
    start = (*nothing, jnp.zeros(kernel.shape[::-1]))
    # Where all slots fit into one chunk there is no loop: collectives of sharded parameters stay outside of loops then,
    # where XLA can schedule them (several fake CPU devices deadlock otherwise).
    single = width == real.shape[1]
    found, loss, d_hidden, d_kernel = (
        visit(jnp.int32(0), start) if single else jax.lax.fori_loop(0, chunks, visit, start)
    )
    place = jnp.argsort(order[:, : real.shape[1]], axis=1)  # where each slot went
    statistics = TokenStatistics(*(jnp.where(real, _take(part, place), 0.0) for part in found))
    return statistics, loss, _take(d_hidden, place).astype(hidden.dtype), d_kernel.T.astype(kernel.dtype)


def _real_first(real: Array, width: int) -> tuple[Array, Array]:
    """Each user's slots, real ones first, padded to whole chunks with slot 0; and the chunks that hold real slots."""
    order = jnp.argsort(~real, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, -real.shape[1] % width)))
    longest = jnp.max(jnp.sum(real, axis=1, dtype=jnp.int32))
    return order, (longest + width - 1) // width


def _slots(order: Array, chunk: Array, width: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(order, chunk * width, width, axis=1)


def _like(mask: Array, x: Array) -> Array:
    """mask [U, L] -> [U, L, 1, ...], to be broadcast against x."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 2))


def _take(x: Array, slots: Array) -> Array:
    """x [U, L] or [U, L, D] at slots [U, C]."""
    return jnp.take_along_axis(x, _like(slots, x), axis=1)


def _log_probabilities(hidden: Array, kernel: Array, temperature: float) -> Array:
    """float32 [M, V]."""
    logits = jnp.matmul(hidden, kernel.astype(hidden.dtype).T, preferred_element_type=jnp.float32) / temperature
    return logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
