"""Random values of single fields: each gives a configuration that a run can start from, or a one-line error."""

import json
import math
from typing import Literal, get_args, get_origin

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from r2rank_jax.cli.overrides import dotted_fields, overridden
from r2rank_jax.config import RunConfig, from_json, to_json
from r2rank_jax.errors import R2RankError
from r2rank_jax.model.counting import parameters
from r2rank_jax.sharding import abstract_lists, mesh_of_shapes
from r2rank_jax.train.objectives import check
from r2rank_jax.train.state import learning_rate, make_optimizer

BASE = RunConfig(name="x")
KINDS = dotted_fields(RunConfig)
FIELDS = sorted(KINDS)
SECTIONS = ["data", "model", "mesh", "compute", "sft", "rl", "evaluation", "sft.optimizer", "rl.optimizer"]
FORMER = ["rl.metric_k", "data.metric_k", "metric_k", "unknown", "rl.optimizer.unknown"]

WHOLE = st.one_of(st.integers(-3, 70), st.sampled_from([2**31 - 1, 2**31, -(2**31), 2**32, 2**63, 10**400]))
REAL = st.one_of(st.sampled_from([0.0, -0.0, 0.5, 1.0, 1e-30, 1e30, 1e308, math.nan, math.inf, -math.inf]), st.floats())
NAMES = ["", " ", "auto", "exact", "reinforce", "mrr", "1e999*mrr", "ndcg@0", "os:getcwd", "os:sep", ":", "a:b", "None"]
TEXT = st.one_of(st.sampled_from([*NAMES, "first_order", "adapters", "head", "\0", "../x", "x" * 5000, "٣"]), st.text())
ONE = st.one_of(WHOLE, REAL, st.booleans(), st.none(), TEXT)
ANY = st.one_of(ONE, st.lists(ONE, max_size=3), st.dictionaries(st.text(max_size=3), ONE, max_size=2))


def likely(kind):
    """Values of a field's own type, of which about half are in range."""
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        return st.lists(WHOLE, max_size=4)
    return {int: WHOLE, float: REAL, bool: st.booleans(), str: TEXT}.get(kind, st.one_of(REAL, TEXT, st.none()))


FIELD_VALUE = st.one_of(
    st.tuples(st.sampled_from([*FIELDS, *SECTIONS, *FORMER]), ANY),
    st.sampled_from(FIELDS).flatmap(lambda name: st.tuples(st.just(name), likely(KINDS[name]))),
)


def require_one_line(error):
    message = str(error)
    assert message and "\n" not in message and len(message) < 3000, message


def require_startable(config):
    """What a run computes from its configuration before it opens files. Stored, the configuration stays the same."""
    assert from_json(json.loads(json.dumps(to_json(config), allow_nan=False))) == config
    assert parameters(config.model) > 0
    mesh = mesh_of_shapes(config.mesh)
    for phase, updates in ((config.sft, config.sft.steps), (config.rl, config.rl.steps * config.rl.updates)):
        assert abstract_lists(mesh, config, phase.batch_users).items.shape[0] % config.mesh.batch_shards == 0
        rate = learning_rate(phase.optimizer, updates)
        assert all(np.isfinite(rate(step)) for step in (0, updates - 1))
        make_optimizer(phase.optimizer, updates)
    np.random.default_rng(config.seed + 1)
    try:
        check(config)
    except R2RankError as error:
        require_one_line(error)


@settings(max_examples=1000, derandomize=True, deadline=None, database=None)
@given(FIELD_VALUE)
@example(("rl.reward", "os:sep"))
@example(("rl.reward", "os:getcwd"))
@example(("sft.head_loss", "os:sep"))
@example(("rl.rationale_rewards", "os:sep@3"))
@example(("rl.rationale_rewards", "0.1*os:sep"))
def test_one_value_of_a_stored_configuration(field_value):
    name, value = field_value
    values = to_json(BASE)
    *sections, field = name.split(".")
    place = values
    for section in sections:
        place = place[section]
    place[field] = value
    try:
        config = from_json(values)
    except R2RankError as error:
        require_one_line(error)
    else:
        require_startable(config)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.sampled_from(FIELDS), ONE, st.booleans())
def test_one_value_on_the_command_line(name, value, joined):
    huge = isinstance(value, int) and abs(value) > 10**99
    flag, text = f"--{name.replace('_', '-')}", "9" * 5000 if huge else str(value)
    try:
        config = overridden(BASE, [f"{flag}={text}"] if joined else [flag, text], "r2rank sft")
    except R2RankError as error:
        require_one_line(error)
    else:
        require_startable(config)
