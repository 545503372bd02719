"""What is estimated is what XLA allocates; what does not fit is refused with a change that does."""

import dataclasses
import json
import re

import jax
import pytest

from r2rank_jax import cli
from r2rank_jax.config import (
    ComputeConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
    to_json,
)
from r2rank_jax.errors import ConfigError
from r2rank_jax.plan import plan
from r2rank_jax.plan.compiled import CompiledProgram, missing_compiler
from r2rank_jax.plan.devices import DEVICES, parse_topology, require_mesh
from r2rank_jax.plan.estimate import bytes_on_device, estimate
from r2rank_jax.plan.programs import lowered_rl, lowered_sft
from r2rank_jax.plan.remedy import _split_heads, _split_parameters, nearest_remedy
from r2rank_jax.sharding import abstract_params, make_mesh, mesh_of_shapes
from r2rank_jax.train.memory.activations import on_one_device
from r2rank_jax.train.memory.chunk_choice import GIB

MODEL = ModelConfig(vocabulary=1024, width=48, layers=2, heads=4, kv_heads=2, head_size=12, mlp_width=128)


def configured(model=MODEL, users=8, **mesh):
    """Activations outweigh parameters, as in the quickstart; an estimator that compiles fast."""
    fast = {"estimator": "pl_rank", "credit": "leave_item_out"}
    return RunConfig(
        name="test",
        data=DataConfig(prefix_tokens=48, suffix_tokens=10, rationale_tokens=18, candidate_items=10),
        model=model,
        mesh=MeshConfig(**mesh),
        sft=SFTConfig(batch_users=users),
        rl=RLConfig(batch_users=users, **fast),
    )


# -- topologies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "devices", "slices"),
    [
        ("v5p:4x4x8", 128, 1),
        ("v6e:2x4", 8, 1),
        ("h200:8", 8, 1),
        ("a100-40:1", 1, 1),
        ("cpu:8", 8, 1),
        ("2xv5p:4x4x8", 256, 2),
        ("12xh200:8", 96, 12),
        ("1xcpu:8", 8, 1),
    ],
)
def test_topologies(name, devices, slices):
    topology = parse_topology(name)
    assert topology.devices == devices and topology.device.memory_bytes > 0 and topology.slices == slices
    assert topology.devices_per_slice * slices == devices and name.endswith(topology.of_slice)


def test_memory_is_what_a_program_may_fill():
    assert parse_topology("v5e:2x2").device.memory_bytes == 15.75 * GIB
    assert parse_topology("h100:8").device.memory_bytes == int(0.75 * 84_942_979_072)
    assert parse_topology("cpu:1").device.memory_bytes // 8 == parse_topology("cpu:8").device.memory_bytes
    assert parse_topology("2xcpu:4").device.memory_bytes == parse_topology("cpu:8").device.memory_bytes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu9:8", r"--topology must be KIND:SIZE .* v5p, .*, got 'tpu9:8'; for example v5p:2x2x2"),
        ("v5p:8", r"v5p needs 3 sizes, in chips, got 'v5p:8'; for example v5p:2x2x2"),
        ("v6e:2x2x2", r"v6e needs 2 sizes, in chips, .*; for example v6e:2x2"),
        ("h200", r"h200 needs a number of devices, got 'h200'; for example h200:8"),
        ("h200:0", r"h200 needs a number of devices"),
        ("h200:eight", r"h200 needs a number of devices"),
        ("0xh200:8", r"--topology must be KIND:SIZE .* got '0xh200:8'; .* 2xh200:8 for two slices"),
        ("twoxh200:8", r"--topology must be KIND:SIZE"),
        ("2xv5p:8", r"v5p needs 3 sizes, in chips, got '2xv5p:8'"),
        ("", r"--topology must be KIND:SIZE"),
    ],
)
def test_what_is_no_topology(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_topology(name)


def test_the_mesh_must_use_every_device():
    topology = parse_topology("v5p:2x2x2")
    require_mesh(MeshConfig(fsdp=4, tensor=2), topology)
    with pytest.raises(ConfigError, match=r"= 2 must equal .* has 8; set --mesh.fsdp 4, or choose a topology of 2"):
        require_mesh(MeshConfig(tensor=2), topology)
    with pytest.raises(ConfigError, match=r"set --mesh.fsdp 8 and the others to 1"):
        require_mesh(MeshConfig(tensor=3), topology)


def test_the_mesh_must_have_the_slices_of_the_topology():
    two = parse_topology("2xh200:8")
    require_mesh(MeshConfig(data=4, fsdp=2, tensor=2, slices=2), two)
    with pytest.raises(
        ConfigError, match=r"2 for 2xh200:8, got 1; set --mesh\.slices 2 --mesh\.data 2, or .* h200:16$"
    ):
        require_mesh(MeshConfig(fsdp=16), two)
    with pytest.raises(ConfigError, match=r"set --mesh\.slices 1, or choose a topology such as 2xh200:8$"):
        require_mesh(MeshConfig(data=2, fsdp=8, slices=2), parse_topology("h200:16"))
    with pytest.raises(ConfigError, match=r"set --mesh\.slices 1, or choose a topology such as 2xv5p:2x2x2$"):
        require_mesh(MeshConfig(data=2, fsdp=4, slices=2), parse_topology("v5p:2x2x2"))
    with pytest.raises(ConfigError, match=r"set --mesh\.fsdp 8, --mesh\.data 2 and --mesh\.tensor 1"):
        require_mesh(MeshConfig(data=6, slices=2), two)


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_what_an_axis_does_not_divide_is_copied():
    """Two key-value heads on four tensor devices: keys and values stay whole, queries and the MLP are split."""
    mesh = mesh_of_shapes(MeshConfig(tensor=4))
    attention = abstract_params(mesh, MODEL)["layers"]["attention"]
    whole = 2 * 48 * 2 * 12 * 4
    assert bytes_on_device(attention["k"]) == whole
    assert bytes_on_device(attention["q"]) == 2 * 48 * 4 * 12 * 4 // 4
    local = on_one_device(MODEL, 4)
    assert (local.kv_heads, local.mlp_width, local.vocabulary) == (2, 32, 256)
    assert on_one_device(MODEL, 2).heads == 2 and on_one_device(MODEL, 2).kv_heads == 1


@pytest.mark.slow
def test_more_devices_hold_less_each():
    one, eight = (estimate(configured(fsdp=n), parse_topology(f"cpu:{n}")) for n in (1, 8))
    for name in ("sft step", "rl update"):
        for kind in ("weights", "optimizer moments"):
            assert eight.programs[name].of(kind) == pytest.approx(one.programs[name].of(kind) / 8, rel=0.1), (
                "norms are copied"
            )
    assert one.programs["rl update"].of("parameter average") == one.programs["rl update"].of("weights")


@pytest.mark.slow
@pytest.mark.parametrize(("data", "score_reads"), [(1, "context"), (8, "words")])
def test_estimates_are_within_a_tenth_of_what_xla_allocates(data, score_reads):
    """Arguments, results and temporaries. A wave is a little less exact, for XLA for CPU copies its short cache; of the
    start of a rollout and of RL's assessment, which are never the fullest, the estimate is an upper bound."""
    config = configured(data=data)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, score_reads=score_reads))
    programs = estimate(config, parse_topology(f"cpu:{data}")).programs
    mesh = make_mesh(config.mesh)
    seen = set()
    for name, lowered in (*lowered_sft(mesh, config), *lowered_rl(mesh, config)):
        memory = lowered.compile().memory_analysis()
        allocated = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        allocated += memory.temp_size_in_bytes
        estimated = sum(programs[name].program.values())
        if name in ("rollout start", "rl assess", "rollout finish"):
            assert 0.9 * allocated < estimated, name
        else:
            assert estimated == pytest.approx(allocated, rel=0.2 if name == "rollout wave" else 0.1), name
        seen.add(name)
    assert seen == set(programs)


# -- what would fit ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.7, 0.35, 0.12])
def test_the_nearest_change_fits_and_the_one_before_does_not(share):
    config = configured(model=dataclasses.replace(MODEL, layers=8, remat="none"), users=16, data=4)
    config = dataclasses.replace(config, compute=ComputeConfig(update_gib=10))  # none that adapts to the memory
    topology = parse_topology("h100:4")
    peak = estimate(config, topology).peak
    small = topology._replace(device=topology.device._replace(memory_bytes=int(share * peak)))
    found = estimate(config, small)
    assert found.peak > small.device.memory_bytes
    remedy = nearest_remedy(found, small)
    assert remedy is not None
    assert remedy.peak_bytes == estimate(remedy.config, small).peak <= small.device.memory_bytes
    assert remedy.short_peak_bytes > small.device.memory_bytes
    # The flags, typed, give the configuration that was estimated.
    values = to_json(remedy.config)
    for flag, value in remedy.flags.items():
        at = values
        for part in flag.removeprefix("--").replace("-", "_").split("."):
            at = at[part]
        assert str(at) == value or float(at) == float(value)


def test_no_change_makes_fsdp_or_tensor_cross_slices():
    for change in (*_split_parameters(MeshConfig(data=8, slices=2)), *_split_heads(configured(data=8, slices=2))):
        assert int(change.flags["--mesh.data"]) >= 2 and change.apply(configured(users=16, data=8, slices=2))
    assert [c.flags["--mesh.data"] for c in _split_parameters(MeshConfig(data=8, slices=2))] == ["4", "2"]


@pytest.mark.slow
def test_where_nothing_helps_no_change_is_named():
    topology = parse_topology("h100:1")
    tiny = topology._replace(device=topology.device._replace(memory_bytes=1000))
    assert nearest_remedy(estimate(configured(), tiny), tiny) is None


def test_what_was_compiled_counts_and_makes_remedies_stricter():
    config = dataclasses.replace(
        configured(model=dataclasses.replace(MODEL, layers=8, remat="none")), compute=ComputeConfig(update_gib=10)
    )
    topology = parse_topology("h100:1")
    peak = estimate(config, topology).peak
    topology = topology._replace(device=topology.device._replace(memory_bytes=int(1.5 * peak)))
    found = estimate(config, topology)
    assert plan.judge(found, topology, []).fits
    twice = CompiledProgram("rl update", bytes=2 * peak)
    verdict = plan.judge(found, topology, [twice])
    assert not verdict.fits and verdict.peak_bytes == 2 * peak
    assert verdict.remedy is not None and verdict.remedy.peak_bytes <= 0.75 * peak < verdict.remedy.short_peak_bytes
    half = [CompiledProgram(name, bytes=1) for name in found.programs]
    assert plan.judge(found, topology, half).peak_bytes < peak
    refused = plan.judge(found, topology, [CompiledProgram("rl update", error="Ran out of memory")])
    assert not refused.fits and refused.remedy is not None
    assert "the compiler failed on rl update: Ran out of memory; set --" in plan.shortage(refused, topology)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "planned.py"
    path.write_text(
        "from r2rank_jax.config import from_json\n"
        f"def config():\n    return from_json({to_json(dataclasses.replace(configured(), name='planned'))!r})\n"
    )
    return path


def run(capsys, *args):
    code = cli.main(["plan", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, json.loads(out.splitlines()[-1]), err


def test_the_last_line_is_json(config_file, capsys):
    code, out, last, err = run(capsys, "--config", config_file, "--topology", "v5p:2x2x2", "--mesh.data", 8)
    assert code == 0 and err == ""
    assert last["fits"] and last["remedy"] is None and last["devices"] == 8
    assert last["peak_bytes"] == max(program["bytes"] for program in last["estimated"].values())
    for program in last["estimated"].values():
        assert sum(program["kinds"].values()) == program["bytes"]
    assert last["work"]["rl update"]["flops"] > last["work"]["sft step"]["flops"] > 0
    assert f"parameters: {last['parameters']:,}" in out and "fits: yes" in out


def test_a_run_that_does_not_fit_is_refused_with_a_remedy(config_file, capsys, monkeypatch):
    args = ("--config", config_file, "--topology", "v5e:1x1", "--compute.update-gib", 10, "--model.remat", "none")
    peak = run(capsys, *args)[2]["peak_bytes"]
    monkeypatch.setitem(DEVICES, "v5e", DEVICES["v5e"]._replace(memory_bytes=peak // 2))
    code, out, last, err = run(capsys, *args)
    assert code == 1 and not last["fits"] and "fits: no" in out
    assert re.fullmatch(
        r"r2rank: a device of v5e:1x1 has .* GiB for programs, but the run needs .* GiB on each device; set --.*\n", err
    )
    assert last["remedy"]["peak_bytes"] <= last["memory_bytes"] < last["remedy"]["one_step_less"]["peak_bytes"]


def test_a_usage_error(config_file, capsys):
    assert cli.main(["plan", "--config", str(config_file)]) == 2
    assert "needs --topology KIND:SIZE" in capsys.readouterr().err
    assert cli.main(["plan", "--config", str(config_file), "--topology", "h200:8"]) == 2
    assert "set --mesh.fsdp 8" in capsys.readouterr().err


def test_without_a_compiler_it_estimates_and_says_so(config_file, capsys, tmp_path):
    args = ("--config", config_file, "--topology", "v5p:1x1x1", "--backend", "compile")
    code, out, last, _ = run(capsys, *args)
    assert code == 0 and last["compiled"] == {}
    assert "not compiled: compiling for v5p:1x1x1 needs libtpu in compilers/tpu" in out
    assert "pip install --target compilers/tpu --no-deps 'libtpu==" in last["not_compiled"]
    folder = tmp_path / "mine"
    gpu = missing_compiler(parse_topology("h100:1"), folder)
    assert f"pip install --target {folder} --no-deps jax-cuda13-plugin=={jax.__version__}" in gpu
    (folder / "jax_plugins").mkdir(parents=True)
    assert missing_compiler(parse_topology("h100:1"), folder) is None
    assert "pairs" in missing_compiler(parse_topology("v4:2x2x1"), None)


@pytest.mark.slow
def test_the_real_programs_are_compiled_in_a_process_of_their_own(config_file, capsys):
    """Two slices of one fake device each, between which the gradients cross once."""
    shallow = ("--model.layers", 1, "--data.candidate-items", 4, "--mesh.data", 2, "--mesh.slices", 2)
    code, out, last, _ = run(capsys, "--config", config_file, "--topology", "2xcpu:1", "--backend", "compile", *shallow)
    assert code == 0 and last["not_compiled"] is None
    assert set(last["compiled"]) == set(last["estimated"])
    assert all(program["error"] is None for program in last["compiled"].values())
    reduced = last["compiled"]["sft step"]["collectives"]["all-reduce"]
    assert reduced["bytes"] >= 4 * last["parameters"], "gradients are added up over users"
    step = last["across_slices"]["sft step"]
    assert step["compiled"] and step["bytes"] == reduced["crossing_bytes"] == reduced["bytes"]
    assert "compiled rl update in" in out and "; out of each slice" in out
