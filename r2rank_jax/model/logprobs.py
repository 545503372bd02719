"""Log-probabilities and related statistics of given tokens, without ever holding [rows, T, V] logits.

Rationales differ in length, so nearly half of a batch's slots are padding; and in a small model with a large
vocabulary, the logits are half of all work. Each user's real slots are therefore moved to the front, and only as many
chunks of slots are visited as the user with most tokens needs. If all slots fit into one chunk, there is no loop. The
trip count is known only at run time, which plain reverse-mode differentiation does not support, so the derivatives are
written out.

A loss that is a sum over tokens (`token_loss`) is differentiated while the logits of a chunk exist, as in Liger's fused
cross-entropy (Hsu et al. 2024). Any other function of `token_statistics` computes the logits a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array

# The number of tokens, over all rows, whose float32 logits exist at the same time.
CHUNK_TOKENS = 512


class TokenStatistics(NamedTuple):
    """Statistics of each token in nats; float32 [U, ...], 0 on padding."""

    logp: Array  # log p(token)
    entropy: Array  # H(p) of the distribution that the token was sampled from
    kl: Array  # KL(p || reference) over the whole vocabulary; 0 without a reference


# Statistics, constants of the same tokens, shared constants -> the loss of each token.
OfToken = Callable[[TokenStatistics, Any, Any], Array]


class TokenLoss(NamedTuple):
    """A loss of each token that does not depend on other tokens."""

    of_token: OfToken  # elementwise; closes over no traced values
    per_token: Any  # constants: pytree of [U, ...] like the tokens
    shared: Any  # constants: pytree


class _Tokens(NamedTuple):
    """Flattened slots and constants: all inputs that are not differentiated."""

    targets: Array  # int32 [U, L]
    real: Array  # bool [U, L]
    reference: tuple[Array, Array] | None  # [U, L, D'], [V, D']
    per_token: Any  # pytree of [U, L]
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
    """Log-probabilities of tokens, and the entropy and KL of the distributions that they were sampled from.

    Every result is differentiable with respect to `hidden` and `kernel`; the reference is a constant.

    Args:
        hidden: [U, ..., D] states that predict the targets.
        kernel: [V, D].
        targets: int32 [U, ...].
        real: bool [U, ...]; False = padding.
        reference: another model's hidden states [U, ..., D'] and kernel [V, D'].
        temperature: divides all logits.
        chunk_tokens: tokens per chunk, which bounds memory; rounded down to the same number of slots of every user.
    """
    tokens, width = _flat(targets, real, reference, (), (), chunk_tokens)
    statistics = _statistics(
        hidden.reshape(*tokens.targets.shape, hidden.shape[-1]), kernel, tokens, temperature, width
    )
    return TokenStatistics(*(part.reshape(targets.shape) for part in statistics))


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
    """The sum of a loss over real tokens. Its gradient does not compute the logits a second time.

    Args:
        loss: the loss of each token; the other arguments are those of `token_statistics`.
        hidden: [U, ..., D].
        kernel: [V, D].
        targets: int32 [U, ...].
        real: bool [U, ...].
        reference: [U, ..., D'] and [V, D'].
        temperature: divides all logits.
        chunk_tokens: tokens per chunk.

    Returns:
        The sum, float32 [], differentiable with respect to `hidden` and `kernel`; and the statistics, which are not
        differentiable.
    """
    tokens, width = _flat(targets, real, reference, loss.per_token, loss.shared, chunk_tokens)
    flat = hidden.reshape(*tokens.targets.shape, hidden.shape[-1])
    total, statistics = _loss(loss.of_token, flat, kernel, tokens, temperature, width)
    return total, TokenStatistics(*(jax.lax.stop_gradient(part).reshape(targets.shape) for part in statistics))


def _flat(
    targets: Array, real: Array, reference: Any, per_token: Any, shared: Any, chunk_tokens: int
) -> tuple[_Tokens, int]:
    """All slots of a user in one row, and the number of slots of each user in a chunk."""
    users, slots = targets.shape[0], math.prod(targets.shape[1:])
    flat = lambda x: x.reshape(users, slots)  # noqa: E731
    if reference is not None:
        reference = reference[0].reshape(users, slots, reference[0].shape[-1]), reference[1]
    tokens = _Tokens(flat(targets), flat(real), reference, jax.tree.map(flat, per_token), shared)
    return tokens, min(slots, max(1, chunk_tokens // max(users, 1)))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _statistics(hidden: Array, kernel: Array, tokens: _Tokens, temperature: float, width: int) -> TokenStatistics:
    return _visit_all(None, hidden, kernel, tokens, temperature, width)[0]


def _statistics_forward(hidden: Array, kernel: Array, tokens: _Tokens, temperature: float, width: int) -> Any:
    return _statistics(hidden, kernel, tokens, temperature, width), (hidden, kernel, tokens)


def _statistics_backward(temperature: float, width: int, saved: Any, cotangents: TokenStatistics) -> Any:
    """The statistics weighted by their cotangents are a sum over tokens, with a gradient like that of `token_loss`."""
    hidden, kernel, tokens = saved

    def of_token(statistics: TokenStatistics, weights: TokenStatistics, _: Any) -> Array:
        return statistics.logp * weights.logp + statistics.entropy * weights.entropy + statistics.kl * weights.kl

    tokens = tokens._replace(per_token=cotangents)
    return *_visit_all(of_token, hidden, kernel, tokens, temperature, width)[2:], None


_statistics.defvjp(_statistics_forward, _statistics_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def _loss(
    of_token: OfToken, hidden: Array, kernel: Array, tokens: _Tokens, temperature: float, width: int
) -> tuple[Array, TokenStatistics]:
    statistics = _visit_all(None, hidden, kernel, tokens, temperature, width)[0]
    return jnp.sum(jnp.where(tokens.real, of_token(statistics, tokens.per_token, tokens.shared), 0.0)), statistics


def _loss_forward(
    of_token: OfToken, hidden: Array, kernel: Array, tokens: _Tokens, temperature: float, width: int
) -> Any:
    statistics, loss, d_hidden, d_kernel = _visit_all(of_token, hidden, kernel, tokens, temperature, width)
    return (loss, statistics), (d_hidden, d_kernel)


def _loss_backward(of_token: OfToken, temperature: float, width: int, saved: Any, cotangents: Any) -> Any:
    return *((cotangents[0] * d).astype(d.dtype) for d in saved), None


_loss.defvjp(_loss_forward, _loss_backward)


def _visit_all(
    of_token: OfToken | None, hidden: Array, kernel: Array, tokens: _Tokens, temperature: float, width: int
) -> tuple[TokenStatistics, Array, Array, Array]:
    """One pass over all chunks.

    Returns:
        The statistics [U, L]; and if `of_token` is given, its sum and the gradient of the sum with respect to hidden
        states [U, L, D] and kernel [V, D].
    """
    real = tokens.real
    if not real.size:
        return TokenStatistics(*3 * [jnp.zeros(real.shape)]), jnp.zeros(()), hidden, jnp.zeros_like(kernel)
    order, chunks = _real_first(real, width)
    visit = _visitor(of_token, hidden, kernel, tokens, temperature, order, width)
    zeros = jnp.zeros((3, *order.shape)), jnp.zeros(()), jnp.zeros((*order.shape, hidden.shape[-1]))
    start = (*zeros, jnp.zeros(kernel.shape[::-1]))
    # If all slots fit into one chunk there is no loop. Collectives of sharded parameters are then outside of loops,
    # where XLA can schedule them (several fake CPU devices deadlock otherwise).
    single = width == real.shape[1]
    statistics, loss, d_hidden, d_kernel = (
        visit(jnp.int32(0), start) if single else jax.lax.fori_loop(0, chunks, visit, start)
    )
    place = jnp.argsort(order[:, : real.shape[1]], axis=1)  # the place of each slot in `order`
    statistics = TokenStatistics(*(jnp.where(real, _take(part, place), 0.0) for part in statistics))
    return statistics, loss, _take(d_hidden, place).astype(hidden.dtype), d_kernel.T.astype(kernel.dtype)


def _visitor(
    of_token: OfToken | None,
    hidden: Array,
    kernel: Array,
    tokens: _Tokens,
    temperature: float,
    order: Array,
    width: int,
) -> Callable[[Array, Any], Any]:
    """The function that adds one chunk of slots to statistics, loss, d_hidden and d_kernel.

    With logits z, p = softmax(z) and q the reference's:

    ∂logp_t/∂z = onehot_t − p,   ∂H/∂z = −p (log p + H),   ∂KL/∂z = p (log p − log q − KL).
    """
    vocabulary = jnp.arange(kernel.shape[0])

    def visit(chunk: Array, carry: Any) -> Any:
        statistics, loss, d_hidden, d_kernel = carry
        slots = _slots(order, chunk, width)
        # False for the padding of users with fewer tokens, and for slots of the last chunk beyond the last slot. Their
        # values may be anything, and zero times infinity is not zero, so they are replaced by zeros.
        inside = (chunk * width + jnp.arange(width) < tokens.real.shape[1]) & _take(tokens.real, slots)
        real = inside.reshape(-1)

        def take(x: Array) -> Array:  # [U, L, ...] -> [M, ...], the slots of this chunk
            taken = _take(x, slots)
            return jnp.where(_like(inside, taken), taken, 0).reshape(-1, *x.shape[2:])

        h, targets = take(hidden), take(tokens.targets)[:, None]
        log_p = _log_probabilities(h, kernel, temperature)  # [M, V]
        p = jnp.exp(log_p)
        entropy = -jnp.sum(p * log_p, axis=-1)
        log_ratio, kl = jnp.zeros(()), jnp.zeros_like(entropy)
        if tokens.reference is not None:
            log_ratio = log_p - _log_probabilities(take(tokens.reference[0]), tokens.reference[1], temperature)
            kl = jnp.sum(p * log_ratio, axis=-1)  # a sum of differences: equal policies give exactly 0
        logp = jnp.take_along_axis(log_p, targets, axis=-1)[:, 0]
        chunk_statistics = TokenStatistics(*(jnp.where(real, part, 0.0) for part in (logp, entropy, kl)))
        shaped = jnp.stack(chunk_statistics).reshape(3, *inside.shape)
        statistics = jax.lax.dynamic_update_slice_in_dim(statistics, shaped, chunk * width, axis=2)
        if of_token is None:
            return statistics, loss, d_hidden, d_kernel

        def total(s: TokenStatistics) -> Array:
            return jnp.sum(jnp.where(real, of_token(s, jax.tree.map(take, tokens.per_token), tokens.shared), 0.0))

        value, d_statistics = jax.value_and_grad(total)(chunk_statistics)
        d_logp, d_entropy, d_kl = (d[:, None] for d in d_statistics)
        d_logits = d_logp * ((vocabulary == targets) - p) - d_entropy * p * (log_p + entropy[:, None])
        d_logits += d_kl * p * (log_ratio - kl[:, None])
        d_logits = jnp.where(real[:, None], d_logits / temperature, 0.0).astype(h.dtype)
        d_h = jnp.matmul(d_logits, kernel.astype(h.dtype), preferred_element_type=jnp.float32)
        # [D, V], not [V, D]: on CPU, transposing the narrow factor is twice as fast as transposing the wide one.
        d_kernel += jnp.matmul(h.T, d_logits, preferred_element_type=jnp.float32)
        shaped = d_h.reshape(*inside.shape, -1)
        d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, shaped, chunk * width, axis=1)
        return statistics, loss + value, d_hidden, d_kernel

    return visit


def _real_first(real: Array, width: int) -> tuple[Array, Array]:
    """Each user's slots, real ones first, padded to whole chunks with slot 0; and how many chunks hold real slots."""
    order = jnp.argsort(~real, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, -real.shape[1] % width)))
    longest = jnp.max(jnp.sum(real, axis=1, dtype=jnp.int32))
    return order, (longest + width - 1) // width


def _slots(order: Array, chunk: Array, width: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(order, chunk * width, width, axis=1)


def _like(mask: Array, x: Array) -> Array:
    """mask [U, L] -> [U, L, 1, ...], which broadcasts against x."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 2))


def _take(x: Array, slots: Array) -> Array:
    """x [U, L] or [U, L, D] at slots [U, C]."""
    return jnp.take_along_axis(x, _like(slots, x), axis=1)


def _log_probabilities(hidden: Array, kernel: Array, temperature: float) -> Array:
    """float32 [M, V]."""
    logits = jnp.matmul(hidden, kernel.astype(hidden.dtype).T, preferred_element_type=jnp.float32) / temperature
    return logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
