"""What a step sends from slice to slice, estimated and compiled."""

import dataclasses

import pytest

from r2rank_jax.config import MeshConfig, ModelConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.model.counting import parameters
from r2rank_jax.plan import plan
from r2rank_jax.plan.collectives import Collectives
from r2rank_jax.plan.compiled import CompiledProgram
from r2rank_jax.plan.devices import parse_topology
from r2rank_jax.plan.network import crossing_of_steps, gradient_bytes_out

MODEL = ModelConfig(vocabulary=64, width=48, layers=1, heads=4, kv_heads=2, head_size=12, mlp_width=128)


def configured(trained="all", model=MODEL, updates=1, **mesh):
    return RunConfig(
        name="test",
        model=model,
        trained=trained,
        mesh=MeshConfig(**mesh),
        sft=SFTConfig(batch_users=16),
        rl=RLConfig(batch_users=16, updates=updates),
    )


@pytest.mark.parametrize(
    ("mesh", "share"),
    [
        ({"data": 2, "slices": 2}, 1),
        ({"data": 8, "fsdp": 2, "slices": 2}, 1),
        ({"data": 4, "fsdp": 4, "slices": 4}, 3 / 2),
        ({"data": 4}, 0),
    ],
)
def test_every_gradient_crosses_once_whatever_the_mesh_of_a_slice(mesh, share):
    assert gradient_bytes_out(configured(**mesh)) == 4 * parameters(MODEL) * share


def test_frozen_parameters_have_no_gradients_and_copies_are_summed_each():
    adapters = configured("adapters", dataclasses.replace(MODEL, lora_rank=2), data=2, slices=2)
    assert 0 < gradient_bytes_out(adapters) < gradient_bytes_out(configured(data=2, slices=2)) / 4
    # Each tensor device reduces its own copy of what that axis does not split: norms and the scoring head.
    copied, whole = (gradient_bytes_out(configured(data=2, tensor=n, slices=2)) for n in (2, 1))
    assert whole < copied < 1.05 * whole


def test_seconds_at_the_rate_of_the_network():
    """Eight adapters of 400 Gbit/s on each machine; RL sums gradients at every update."""
    config, topology = configured(updates=3, data=2, fsdp=8, slices=2), parse_topology("2xh200:8")
    sft, rl = crossing_of_steps(config, topology, []).values()
    assert not sft.compiled and sft.bytes == 4 * parameters(MODEL) and rl.bytes == 3 * sft.bytes
    assert sft.least_seconds == pytest.approx(sft.bytes / (8 * 50e9))
    assert crossing_of_steps(config, parse_topology("2xcpu:8"), [])["sft step"].least_seconds == 0
    assert crossing_of_steps(configured(fsdp=8), parse_topology("h200:8"), []) == {}


def test_compiled_programs_replace_the_estimate_of_a_step_if_all_are_there():
    config, topology = configured(updates=3, data=2, fsdp=8, slices=2), parse_topology("2xh200:8")
    names = ("sft step", "rl assess", "rl update")
    programs = [CompiledProgram(n, collectives={"all-reduce": Collectives(1, 8, 5)}) for n in names]
    programs[1] = dataclasses.replace(programs[1], collectives={"send": Collectives(2, 8, 4)})
    found = crossing_of_steps(config, topology, programs)
    assert found["sft step"].compiled and found["sft step"].bytes == 5
    assert found["rl step"].compiled and found["rl step"].bytes == 4 + 3 * 5
    programs[2] = dataclasses.replace(programs[2], error="too large")
    assert not crossing_of_steps(config, topology, programs)["rl step"].compiled


def test_plan_prints_one_line_of_it(capsys):
    assert plan.run(configured(data=2, fsdp=8, slices=2), "2xh200:8", "abstract", None) is None
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("out of each slice")]
    assert "at least: sft step 0.00" in line and line.endswith("(estimated); at 400 GB/s")
    assert "mesh: data 2 x fsdp 8 x tensor 1 in 2 slices" in out
    assert plan.run(configured(fsdp=8), "h200:8", "abstract", None) is None
    assert "slice" not in capsys.readouterr().out.split("\n{")[0]
