"""Configurations, meshes, batches and chunks of short training runs."""

import dataclasses

import jax
import numpy as np

from r2rank_jax.config import MeshConfig, OptimizerConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.train import context
from r2rank_jax.train.memory.chunk_choice import ChunkChoice
from tests.support.tiny_models import QWEN3, make_batch

STEPS = 4
STOP = 3


def make_config(mesh: MeshConfig, **rl) -> RunConfig:
    settings = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, ema_decay=0.9)
    # Untied embeddings, QK-norm; heads and vocabulary divide by two, so that the tensor axis really splits them.
    model = dataclasses.replace(QWEN3, layers=1, vocabulary=48, mlp_width=40)
    return RunConfig(
        name="test",
        mesh=mesh,
        model=model,
        data=dataclasses.replace(RunConfig(name="x").data, rationale_tokens=4),
        sft=SFTConfig(steps=STEPS, batch_users=8, optimizer=settings),
        rl=RLConfig(steps=STEPS, batch_users=8, optimizer=settings, **({"temperature": 1.0} | rl)),
        evaluation=dataclasses.replace(RunConfig(name="x").evaluation, batch_users=8),
    )


def local_batches(config):
    """One global batch per step, as NumPy."""
    for step in range(STEPS):
        batch, rationales = make_batch(config.model, users=8, items=4, groups=1, seed=step)
        labels = np.zeros((8, 4), np.float32)
        labels[np.arange(8), np.arange(8) % 3] = 1.0
        labels[::2, 3] = 1.0  # half of the lists have two
        batch = dataclasses.replace(batch, labels=labels)
        yield jax.tree.map(np.asarray, batch), jax.tree.map(np.asarray, rationales)


MESHES = [MeshConfig(data=8), MeshConfig(fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)]


def at_once(monkeypatch, chunk_items):
    """Fix the number of items that are read together."""
    monkeypatch.setattr(context, "choose_chunks", lambda config, *_: ChunkChoice(chunk_items, config.model, 0))
