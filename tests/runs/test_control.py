"""The control's work, counted by hand for a small case."""

import dataclasses

from r2rank_jax.config import DataConfig, ModelConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.runs.control import steps_of_same_work

CONFIG = RunConfig(
    name="test",
    data=DataConfig(candidate_items=6, prefix_tokens=40, suffix_tokens=10, rationale_tokens=12),
    model=ModelConfig(vocabulary=100, width=8, layers=1, heads=2, kv_heads=1, head_size=4, mlp_width=16),
    sft=SFTConfig(batch_users=4),
    rl=RLConfig(steps=100, batch_users=2, rationales=3),
)


def forward(users, items, rationales, *, logits):
    """2 operations per weight and token, 16 per pair of query and key, 2 per weight of the vocabulary and token."""
    p, s, t = 40, 10, 12
    weights = (2 * 2 + 2 * 1) * 4 * 8 + 3 * 8 * 16
    rows = items * rationales
    tokens = p + items * s + rows * t
    pairs = p * p / 2 + items * (s * p + s * s / 2) + rows * (t * (p + s) + t * t / 2)
    of_layers = 2 * weights * tokens + 4 * 2 * 4 * pairs
    return users * (of_layers + (2 * 100 * 8 * rows * t if logits else 0))


def test_a_hand_counted_case():
    full, hidden = forward(2, 6, 3, logits=True), forward(2, 6, 3, logits=False)
    sft = 3 * forward(4, 6, 1, logits=True)
    one_update = full + hidden + 3 * full + (full - hidden)  # rollout, reference, update, its KL term
    assert steps_of_same_work(CONFIG, CONFIG, traced_items=6) == round(100 * one_update / sft)
    twice = dataclasses.replace(CONFIG, rl=dataclasses.replace(CONFIG.rl, updates=2))
    two_updates = full + hidden + full + 2 * (3 * full + full - hidden)
    assert steps_of_same_work(CONFIG, twice, traced_items=6) == round(100 * two_updates / sft)


def test_it_is_proportional_to_steps_and_at_least_one():
    double = dataclasses.replace(CONFIG, rl=dataclasses.replace(CONFIG.rl, steps=200))
    one, two = (steps_of_same_work(CONFIG, config, traced_items=6) for config in (CONFIG, double))
    assert abs(two - 2 * one) <= 1
    large = dataclasses.replace(CONFIG, sft=SFTConfig(batch_users=100_000))
    assert steps_of_same_work(large, CONFIG, traced_items=6) == 1
