"""Collectives are counted as often as they run, and in bytes, those that leave a slice apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from r2rank_jax.config import MeshConfig
from r2rank_jax.plan.collectives import Collectives, Slices, _groups, count_collectives, crossing_bytes
from r2rank_jax.sharding import make_mesh

HLO = """
HloModule by_hand, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %x = f32[16]{0} get-tuple-element(%p), index=1
  %r = f32[16]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%sum
  %g = (bf16[2,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(%y), dimensions={0}
  %h = bf16[16,4]{1,0} all-gather-done(%g)
}

%inner (p: f32[]) -> f32[4] {
  ROOT %s = f32[4]{0} reduce-scatter(%p), to_apply=%sum
}

ENTRY %main (a: f32[16]) -> f32[16] {
  %w = (s32[], f32[16]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %u = (s32[], f32[16]) while(%t), condition=%cond, body=%inner
  %p = (f32[8]{0}, s8[8]{0}) collective-permute(%a, %b), source_target_pairs={{0,1}}
}
"""


def test_loops_multiply_and_starts_count_once():
    assert count_collectives(HLO) == {
        "all-gather": Collectives(3, 3 * 16 * 4 * 2),
        "reduce-scatter": Collectives(1, 16),
        "all-reduce": Collectives(3, 3 * 64),
        "collective-permute": Collectives(1, 8 * 4 + 8),
    }
    assert count_collectives("HloModule empty\n\nENTRY %main (a: f32[]) -> f32[] {\n}\n") == {}


STARTED = """
ENTRY %main (a: f32[16]) -> f32[16] {
  %g = ((f32[4]{0}, f32[2]{0}), (f32[16]{0}, f32[8]{0})) all-gather-start(%a, %b), replica_groups={{0,1,2,3}}
  %r = (f32[16]{0}, f32[8]{0}) all-reduce-start(%a, %b), replica_groups={{0,1,2,3}}, to_apply=%sum
  %p = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1}}
  %s = (f32[16]{0}, u32[], token[]) send(%a, %t), frontend_attributes={_xla_host_transfer_handler_name="other"}
}
"""


def test_a_start_counts_its_results_and_not_its_operands():
    """As XLA for GPUs writes several arrays in one call. A send to the host that no slice receives is no collective."""
    assert count_collectives(STARTED) == {
        "all-gather": Collectives(1, 24 * 4),
        "all-reduce": Collectives(1, 24 * 4),
        "collective-permute": Collectives(1, 16 * 4),
    }


@pytest.mark.parametrize(
    ("notation", "groups"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("source_target_pairs={{0,4},{4,0}}", [[0, 4], [4, 0]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,2,2]T(1,2,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['data'=2,'fsdp'=2,'tensor'=2] {'data','fsdp'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=of_the_future", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_every_notation_of_groups(notation, groups):
    assert _groups(f"%r = f32[4] all-reduce(%a), {notation}, to_apply=%sum", 8) == groups


PAIRS = "replica_groups={{0,2},{1,3}}"


@pytest.mark.parametrize(
    ("kind", "line", "slices", "expected"),
    [
        ("all-reduce", "replica_groups={{0,1},{2,3}}", Slices(2, 2), 0),
        ("all-reduce", PAIRS, Slices(1, 4), 0),
        # Two slices exchange sums: of two groups of one member in each slice, or of one group of two.
        ("all-reduce", PAIRS, Slices(2, 2), 2 * 100),
        ("all-reduce", "replica_groups={{0,1,2,3}}", Slices(2, 2), 100),
        ("all-reduce", "replica_groups={{0,1,2,3}}", Slices(4, 1), 2 * 100 * 3 // 4),
        ("all-gather", "replica_groups={{0,1,2,3}}", Slices(2, 2), 50),
        ("reduce-scatter", "replica_groups={{0,1,2,3}}", Slices(2, 2), 200),
        ("all-to-all", PAIRS, Slices(2, 2), 100),
        ("collective-permute", "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", Slices(2, 2), 100),
        ("send", '_xla_megascale_transfer_type="ALL_REDUCE"', Slices(2, 4), 400),
        ("send", '_xla_megascale_transfer_type="ALL_REDUCE"', Slices(4, 4), 600),
        ("send", '_xla_megascale_transfer_type="ONE_TO_ONE"', Slices(4, 4), 400),
    ],
)
def test_bytes_that_leave_a_slice(kind, line, slices, expected):
    """Of a result of 100 bytes on each device."""
    assert crossing_bytes(line, kind, 100, slices) == expected


def test_what_a_compiled_program_sends_across_slices():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, slices=2))
    axes = PartitionSpec(("data", "fsdp", "tensor"))

    def on_device(x):  # [1, 32] on each device
        inside = jax.lax.psum(x, ("fsdp", "tensor"))
        return inside + jax.lax.psum(3 * x, ("data", "fsdp")) + jax.lax.psum(x.astype(jnp.bfloat16), "data")

    spread = jax.shard_map(on_device, mesh=mesh, in_specs=axes, out_specs=axes, check_vma=False)
    x = np.ones((8, 32), np.float32)
    found = count_collectives(jax.jit(spread).lower(x).compile().as_text(), Slices(2, 4))["all-reduce"]
    # Two groups along data and fsdp, of 128 bytes, and four along data, of 64; XLA for CPU may sum those in float32.
    assert found.crossing_bytes in (2 * 128 + 4 * 64, 2 * 128 + 4 * 128)
    assert count_collectives(jax.jit(spread).lower(x).compile().as_text())["all-reduce"].crossing_bytes == 0


def test_a_compiled_loop_of_sums_over_devices():
    mesh = make_mesh(MeshConfig(data=8))

    def on_device(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.psum(y, "data") / 8, x)

    spread = jax.shard_map(
        on_device, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), check_vma=False
    )
    compiled = jax.jit(spread).lower(jnp.ones((8, 32))).compile()
    assert count_collectives(compiled.as_text()) == {"all-reduce": Collectives(5, 5 * 32 * 4)}
