"""Chooses how much memory the activations of an update may use, from the free memory of the devices."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils

from r2rank_jax.config import RunConfig
from r2rank_jax.runs.session.log import say
from r2rank_jax.train.memory.chunk_choice import GIB, update_budget
from r2rank_jax.train.memory.gradients import held_bytes


def choose_budget(config: RunConfig) -> RunConfig:
    """Resolve `compute.update_gib`: half of what parameters, optimizer and gradients leave on the fullest device.

    All processes of a run must call this. They agree on one number, because their programs depend on it.

    Returns:
        `config` itself if a budget is set or the devices do not report their memory, else a copy with a budget.
    """
    if config.compute.update_gib is not None:
        return config
    stats = jax.local_devices()[0].memory_stats() or {}
    own_free = np.array(stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0), np.float64)
    free = float(np.min(multihost_utils.process_allgather(own_free)))
    if free <= 0:
        return config
    platform = jax.default_backend()
    held = held_bytes(config.model, config.mesh, platform)
    budget = update_budget(config.model, config.mesh, platform, free)
    say(f"memory: {free / GIB:.1f} GiB free, {held / GIB:.1f} for the model, {budget / GIB:.1f} for activations")
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, update_gib=budget / GIB))
