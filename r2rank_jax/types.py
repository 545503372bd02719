"""Shared types: one letter per axis, and one frozen pytree for each kind of data that modules exchange.

Axes
    U users in a batch · N candidate items per user · G rationales per item · P prefix tokens ·
    S suffix tokens · T rationale tokens · D width · Q / KV query / key-value heads · H head size ·
    V vocabulary · K places of a ranking · M sampled rankings per list ·
    L tokens of a segment · A, B lanes of a rollout (`rollout/decoding.py`) · C keys of a segment
    (`model/attention.py`).

V(s) is a list's value, and V alone is the vocabulary.

A list is the N items of one user, each with its g-th rationale: a batch holds U·G lists and U·N·G rationales.
The model uses [U, N, G, ...], because rationales fork from items; the ranking mathematics uses [U, G, N].
`mask=True` always means real. Every segment of tokens is right-padded. A token's position is the number of real tokens
before its segment plus its offset in the segment.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array
Params = Any  # a plain pytree of arrays


@struct.dataclass
class ListBatch:
    """Prompts of one batch of users: a shared prefix per user, one suffix per candidate item."""

    user: Array  # int32 [U]        dense user ids; -1 = padding
    position: Array  # int32 [U]        the history is what comes before it; user and position name a list
    items: Array  # int32 [U, N]     dense item ids
    prefix: Array  # int32 [U, P]     instructions and history
    prefix_length: Array  # int32 [U]        real tokens, >= 1
    suffix: Array  # int32 [U, N, S]  one candidate each; the rationale follows
    suffix_length: Array  # int32 [U, N]     real tokens, >= 1 for real items
    labels: Array  # float32 [U, N]   graded relevance; never part of a prompt
    mask: Array  # bool [U, N]      True = real item


OF_USERS = ("user", "position", "prefix", "prefix_length")  # fields of a `ListBatch` [U, ...]
OF_ITEMS = ("items", "suffix", "suffix_length", "labels", "mask")  # [U, N, ...]


@struct.dataclass
class Rationales:
    """The rationales of every item, written by the teacher or by the policy."""

    tokens: Array  # int32 [U, N, G, T]    right-padded; includes the stop token, if there is one
    length: Array  # int32 [U, N, G]       real tokens, >= 1 for real items
    stopped: Array  # bool [U, N, G]        False = truncated at T tokens


@struct.dataclass
class KeyValues:
    """Keys and values of one segment of tokens, head-major. An axis of size 1 is shared by all rows, not copied."""

    k: tuple[Array, ...]  # per layer [U, KV, N|1, G|1, H, L]
    v: tuple[Array, ...]  # per layer [U, KV, N|1, G|1, L, H]
    valid: Array  # bool [U, N|1, G|1, L]


@struct.dataclass
class WeightedSum:
    """A sum and its weight, kept separate and divided once, after they are summed over microbatches and devices."""

    total: Array  # float32 []
    weight: Array  # float32 []

    def mean(self) -> Array:
        return self.total / jnp.maximum(self.weight, 1e-9)
