"""Log-probabilities of given tokens without ever holding [rows, T, V] logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array

# Tokens whose float32 logits are held at once; their gradients recompute them.
CHUNK_TOKENS = 16_384


def token_logp(
    hidden: Array, kernel: Array, targets: Array, *, temperature: float = 1.0, chunk_tokens: int = CHUNK_TOKENS
) -> tuple[Array, Array]:
    """Log-probability of each target and the entropy of the distribution that it came from, in nats.

    Args:
        hidden: [..., D] states that predict the targets.
        kernel: [V, D].
        targets: int32 [...].
        temperature: divides the logits.
        chunk_tokens: memory bound; more tokens than this are scanned in chunks under `jax.checkpoint`.

    Returns:
        logp and entropy, float32 [...].
    """
    shape = targets.shape
    flat_hidden, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    count = flat_targets.shape[0]
    if count <= chunk_tokens:
        logp, entropy = _logp(flat_hidden, kernel, flat_targets, temperature)
    else:
        chunk_tokens = -(-count // -(-count // chunk_tokens))  # as few chunks, all alike: little padding
        padding = -count % chunk_tokens
        chunks_h = jnp.pad(flat_hidden, ((0, padding), (0, 0))).reshape(-1, chunk_tokens, hidden.shape[-1])
        chunks_t = jnp.pad(flat_targets, (0, padding)).reshape(-1, chunk_tokens)
        body = jax.checkpoint(lambda h, t: _logp(h, kernel, t, temperature))
        logp, entropy = jax.lax.map(lambda chunk: body(*chunk), (chunks_h, chunks_t))
        logp, entropy = logp.reshape(-1)[:count], entropy.reshape(-1)[:count]
    return logp.reshape(shape), entropy.reshape(shape)


def _logp(hidden: Array, kernel: Array, targets: Array, temperature: float) -> tuple[Array, Array]:
    logits = jnp.einsum("nd,vd->nv", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    logits = logits / temperature
    total = jax.nn.logsumexp(logits, axis=-1)
    logp = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - total
    entropy = total - jnp.sum(jax.nn.softmax(logits) * logits, axis=-1)
    return logp, entropy
