"""The network of SASRec: a causal transformer over item ids."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


class SASRec(nn.Module):
    """Hidden states of item sequences (Kang and McAuley 2018, section III), whose products with the embeddings score.

    As in the authors' code, a block normalizes its input (pre-LN), items are embedded once for input and output, and
    positions are learned and counted from the end, because sequences are padded on the left. Two things differ. Id
    `items` is a start token before the first item, so that a user without a history has a state too. Keys and values
    are normalized as well as queries, as is usual now.
    """

    items: int
    width: int
    layers: int
    heads: int
    length: int
    dropout: float

    def setup(self) -> None:
        initial = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", initial, (self.items + 1, self.width))
        self.positions = self.param("positions", initial, (self.length, self.width))
        self.blocks = [_Block(self.heads, self.dropout) for _ in range(self.layers)]
        self.final_norm = nn.LayerNorm()
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, sequences: jax.Array, real: jax.Array, *, train: bool) -> jax.Array:
        """Hidden states.

        Args:
            sequences: int32 [U, L] item ids, oldest first, padded on the left; L = length.
            real: bool [U, L], False = padding.
            train: apply dropout, from the random stream `dropout`.

        Returns:
            float32 [U, L, width]; those of padding mean nothing.
        """
        x = self.embedding[sequences] * jnp.sqrt(jnp.float32(self.width)) + self.positions
        x = self.drop(x, deterministic=not train)
        causal = jnp.tril(jnp.ones((self.length, self.length), bool))
        # Padding attends to itself, because a softmax over no key at all is NaN.
        attended = (causal & real[:, None, :]) | jnp.eye(self.length, dtype=bool)
        for block in self.blocks:
            x = block(x, attended[:, None], train=train)
        return self.final_norm(x)

    def item_scores(self, sequences: jax.Array, real: jax.Array, *, train: bool) -> jax.Array:
        """float32 [U, L, items]: the score of every item as the next one after each place of a sequence."""
        return self(sequences, real, train=train) @ self.embedding[: self.items].T


class _Block(nn.Module):
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, attended: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        attend = nn.MultiHeadDotProductAttention(self.heads, dropout_rate=self.dropout, deterministic=not train)
        x = x + nn.Dropout(self.dropout)(attend(nn.LayerNorm()(x), mask=attended), deterministic=not train)
        hidden = nn.relu(nn.Dense(width)(nn.LayerNorm()(x)))
        hidden = nn.Dense(width)(nn.Dropout(self.dropout)(hidden, deterministic=not train))
        return x + nn.Dropout(self.dropout)(hidden, deterministic=not train)
