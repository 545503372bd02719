"""A run directory with a policy of each phase."""

import json

import jax
import numpy as np

from r2rank_jax.checkpoint.commits import Checkpoints
from r2rank_jax.checkpoint.policy import load_policy
from r2rank_jax.config import DataConfig, MeshConfig, OptimizerConfig, RunConfig, to_json
from r2rank_jax.data.prompts.tokenizer import train_tokenizer
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.sharding import abstract_params, make_mesh
from r2rank_jax.train.state import fresh_state
from tests.support.pretrained.models import BASE

CONFIG = RunConfig(
    name="small", model=BASE, data=DataConfig(prefix_tokens=60, suffix_tokens=30, rationale_tokens=20)
)  # a run that was trained from scratch
RATIONALE = "1 film by the same hand; likes it: yes"


def write_run(folder, config):
    """Write a run directory like that of `r2rank sft` and `r2rank rl`, with different weights for each phase."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    train_tokenizer([RATIONALE, "Heat (1995) 4\n"], BASE.vocabulary).save(str(folder / "tokenizer.json"))
    state = fresh_state(make_mesh(MeshConfig()), config.model, OptimizerConfig(ema_decay=0.9), 5, 0, config.trained)
    rng = np.random.default_rng(0)
    for phase in ("sft", "rl"):
        average = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), state.params)
        checkpoints = Checkpoints(folder / "checkpoints" / phase)
        record = {"phase": phase, "config": to_json(config), "iterator": {}, "steps": 5, "wall_s": 1.0}
        record |= {"finished": True, "has_average": True} | ({"traces": "f00d"} if phase == "sft" else {})
        checkpoints.save(5, state.replace(average=average), PhaseRecord.from_json(record))  # type: ignore[attr-defined]
        checkpoints.close()
    return folder


def policy_of(run_dir, phase="rl", config=CONFIG):
    like = abstract_params(make_mesh(MeshConfig()), config.model)
    return load_policy(run_dir / "checkpoints" / phase, like, config).params


def require_equal(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
