"""The configuration of a run: frozen dataclasses that validate themselves, and their JSON form."""

from r2rank_jax.config.as_json import differences, from_json, read, to_json, with_values
from r2rank_jax.config.fields import (
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    RunConfig,
    Trained,
)
from r2rank_jax.config.objective_names import in_current_fields
from r2rank_jax.config.training import OptimizerConfig, RLConfig, SFTConfig

__all__ = [
    "ComputeConfig",
    "DataConfig",
    "EvaluationConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RLConfig",
    "RunConfig",
    "SFTConfig",
    "Trained",
    "differences",
    "from_json",
    "in_current_fields",
    "read",
    "to_json",
    "with_values",
]
