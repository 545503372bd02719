"""Forward passes over prefix, suffix and rationale, the three levels at which rows share tokens.

prefix_forward      [U, P]        once per user
suffix_forward      [U, N, S]     once per item, after the prefix
rationale_forward   [U, N, G, T]  once per rationale, after both

Where `ModelConfig.score_reads` is "words", the head's hidden state comes from a fourth pass, `words_forward`, which
reads each rationale on its own. Its score is then a function of the words: it cannot look past them at the prefix or
the item.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.logprobs import TokenLoss, token_loss, token_statistics
from r2rank_jax.model.transformer import extend, item_scores, scores, vocabulary_kernel
from r2rank_jax.types import Array, KeyValues, ListBatch, Params, Rationales

# The most rationale tokens that `words_scores` reads at once, over all devices. Not measured on accelerators.
WORDS_TOKENS = 2**16


@struct.dataclass
class ItemContext:
    """Everything that reading a rationale needs from the tokens before it."""

    prefix: KeyValues
    suffix: KeyValues
    last_hidden: Array  # [U, N, D]    at the last suffix token, which predicts the first rationale token
    length: Array  # int32 [U, N]     true prefix + suffix tokens


def padding_mask(length: Array, size: int) -> Array:
    """True for the first `length` of `size` slots: [...] -> bool [..., size]."""
    return jnp.arange(size) < length[..., None]


def take_token(hidden: Array, index: Array) -> Array:
    """Hidden state at one position of each row: [..., L, D], int32 [...] -> [..., D]."""
    return jnp.take_along_axis(hidden, index[..., None, None], axis=-2)[..., 0, :]


def prefix_forward(config: ModelConfig, params: Params, tokens: Array, length: Array) -> KeyValues:
    """Keys and values of the shared prefix. tokens int32 [U, P], length int32 [U]."""
    tokens = tokens[:, None, None, :]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    valid = padding_mask(length[:, None, None], tokens.shape[-1])
    return extend(config, params, tokens, positions, valid)[1]


def suffix_forward(
    config: ModelConfig, params: Params, prefix: KeyValues, prefix_length: Array, tokens: Array, length: Array
) -> ItemContext:
    """Read the items of every user on top of the prefix.

    Args:
        config: shape of the model.
        params: its parameters.
        prefix: from `prefix_forward`.
        prefix_length: int32 [U].
        tokens: int32 [U, N, S].
        length: int32 [U, N]; 0 (a masked item) counts as 1.
    """
    length = jnp.maximum(length, 1)
    positions = prefix_length[:, None, None] + jnp.arange(tokens.shape[-1])
    positions = jnp.broadcast_to(positions, tokens.shape)[:, :, None]
    valid = padding_mask(length[:, :, None], tokens.shape[-1])
    hidden, suffix = extend(config, params, tokens[:, :, None], positions, valid, (prefix,))
    return ItemContext(
        prefix=prefix,
        suffix=suffix,
        last_hidden=take_token(hidden[:, :, 0], length - 1),
        length=prefix_length[:, None] + length,
    )


def read_items(config: ModelConfig, params: Params, batch: ListBatch, prefix: KeyValues | None = None) -> ItemContext:
    """Read the prefix, unless it is given, and then the items."""
    if prefix is None:
        prefix = prefix_forward(config, params, batch.prefix, batch.prefix_length)
    return suffix_forward(config, params, prefix, batch.prefix_length, batch.suffix, batch.suffix_length)


def rationale_forward(config: ModelConfig, params: Params, context: ItemContext, rationales: Rationales) -> Array:
    """Final-norm hidden states of the rationale tokens, [U, N, G, T, D]."""
    tokens = rationales.tokens
    positions = context.length[:, :, None, None] + jnp.arange(tokens.shape[-1])
    positions = jnp.broadcast_to(positions, tokens.shape)
    valid = padding_mask(jnp.maximum(rationales.length, 1), tokens.shape[-1])
    segments = (context.prefix, context.suffix)
    return extend(config, params, tokens, positions, valid, segments)[0]


def words_forward(config: ModelConfig, params: Params, rationales: Rationales) -> Array:
    """Final-norm hidden state at the last token of each rationale, read on its own from position 0: [U, N, G, D]."""
    tokens, length = rationales.tokens, jnp.maximum(rationales.length, 1)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    valid = padding_mask(length, tokens.shape[-1])
    return take_token(extend(config, params, tokens, positions, valid)[0], length - 1)


def words_scores(config: ModelConfig, params: Params, rationales: Rationales) -> Array:
    """Scores of rationales that are read on their own, some items at a time to bound memory: float32 [U, N, G]."""
    users, items, groups, length = rationales.tokens.shape
    fitting = max(1, WORDS_TOKENS // (users * groups * length))
    chunk = max(size for size in range(1, items + 1) if items % size == 0 and size <= fitting)

    def cut(x: Array) -> Array:  # [U, N, ...] -> [chunks, U, chunk, ...]
        return x.reshape(users, items // chunk, chunk, *x.shape[2:]).swapaxes(0, 1)

    def score(rationales: Rationales) -> Array:
        return scores(params, words_forward(config, params, rationales))

    parts = jax.tree.map(cut, rationales)
    if chunk == items:  # no loop, so that collectives of sharded parameters stay outside of loops
        return score(rationales)
    return jax.lax.map(score, parts).swapaxes(0, 1).reshape(users, items, groups)


@struct.dataclass
class RationaleStates:
    """Hidden states of a model that has read rationales."""

    predicting: Array  # [U, N, G, T, D]  at the token before each rationale token
    last: Array  # [U, N, G, D]     at the last rationale token, for the head; see `ModelConfig.score_reads`
    item: Array  # [U, N, D]        at the last token of the item


def read_rationales(
    config: ModelConfig, params: Params, batch: ListBatch, rationales: Rationales, prefix: KeyValues | None = None
) -> RationaleStates:
    """Read prefix (unless it is given), items and rationales: the forward pass of SFT, of RL and of its reference."""
    context = read_items(config, params, batch, prefix)
    if not rationales.tokens.size:  # reasoning is turned off: the head reads the item
        last = jnp.broadcast_to(context.last_hidden[:, :, None], (*rationales.length.shape, config.width))
        return RationaleStates(predicting=jnp.zeros((*rationales.tokens.shape, config.width), last.dtype), last=last, item=context.last_hidden)
    hidden = rationale_forward(config, params, context, rationales)
    first = jnp.broadcast_to(context.last_hidden[:, :, None, None], (*hidden.shape[:3], 1, hidden.shape[-1]))
    if config.score_reads == "words":
        last = words_forward(config, params, rationales)
    else:
        last = take_token(hidden, jnp.maximum(rationales.length, 1) - 1)
    return RationaleStates(predicting=jnp.concatenate([first, hidden[..., :-1, :]], axis=-2), last=last, item=context.last_hidden)


def real_tokens(batch: ListBatch, rationales: Rationales) -> Array:
    """bool [U, N, G, T]: True for tokens that are neither padding nor part of a masked item."""
    return padding_mask(rationales.length, rationales.tokens.shape[-1]) & batch.mask[:, :, None, None]


@struct.dataclass
class Judgement:
    """Statistics and scores of given rationales under the model."""

    logp: Array  # float32 [U, N, G, T]   of each rationale token, 0 on padding
    entropy: Array  # float32 [U, N, G, T]   of the distribution it was sampled from, 0 on padding
    kl: Array  # float32 [U, N, G, T]   of that distribution from the reference's, 0 on padding or without a reference
    scores: Array  # float32 [U, N, G]      of the head
    item_scores: Array  # float32 [U, N]    of the item head, 0 without it


def judge(
    config: ModelConfig,
    params: Params,
    batch: ListBatch,
    rationales: Rationales,
    reference: tuple[Array, Params] | None = None,
    prefix: KeyValues | None = None,
    *,
    temperature: float = 1.0,
    joint: bool = True,
) -> Judgement:
    """Log-probabilities and scores of given rationales.

    Args:
        config: shape of the model.
        params: its parameters.
        batch: prompts.
        rationales: tokens to judge.
        reference: another policy's `RationaleStates.predicting` of the same rationales, and its parameters.
        prefix: from `prefix_forward` on this batch, if it has been read already.
        temperature: divides the logits, as it did when the tokens were sampled.
        joint: False stops the gradient of the scores at the hidden state, so that only the head learns from them.
    """
    states = read_rationales(config, params, batch, rationales, prefix)
    tokens = token_statistics(*_predictions(params, batch, rationales, states, reference), temperature=temperature)
    return Judgement(**tokens._asdict(), scores=_head(params, states, joint), item_scores=item_scores(params, states.item))


def judge_and_sum(
    loss: TokenLoss,
    config: ModelConfig,
    params: Params,
    batch: ListBatch,
    rationales: Rationales,
    reference: tuple[Array, Params] | None = None,
    prefix: KeyValues | None = None,
    *,
    temperature: float = 1.0,
    joint: bool = True,
) -> tuple[Array, Judgement]:
    """The sum of a loss over tokens, float32 [], and the result of `judge`.

    Of that result, only the scores are differentiable. The gradient of the sum needs two matrix products with the
    vocabulary less than a gradient through the statistics of `judge`.

    Args:
        loss: of each token; the other arguments are those of `judge`.
        config: shape of the model.
        params: its parameters.
        batch: prompts.
        rationales: tokens to judge.
        reference: another policy's hidden states and parameters.
        prefix: from `prefix_forward`, if it has been read already.
        temperature: divides the logits.
        joint: False stops the gradient of the scores at the hidden state.
    """
    states = read_rationales(config, params, batch, rationales, prefix)
    predictions = _predictions(params, batch, rationales, states, reference)
    total, tokens = token_loss(loss, *predictions, temperature=temperature)
    return total, Judgement(**tokens._asdict(), scores=_head(params, states, joint), item_scores=item_scores(params, states.item))


def _predictions(
    params: Params,
    batch: ListBatch,
    rationales: Rationales,
    states: RationaleStates,
    reference: tuple[Array, Params] | None,
) -> tuple[Array, Array, Array, Array, tuple[Array, Array] | None]:
    """Arguments of `token_statistics`."""
    other = None if reference is None else (reference[0], vocabulary_kernel(reference[1]))
    return states.predicting, vocabulary_kernel(params), rationales.tokens, real_tokens(batch, rationales), other


def _head(params: Params, states: RationaleStates, joint: bool) -> Array:
    return scores(params, states.last if joint else jax.lax.stop_gradient(states.last))
