"""Collectives are counted as often as they run, and in bytes."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r2rank_jax.config import MeshConfig
from r2rank_jax.plan.collectives import Collectives, count_collectives
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


def test_a_compiled_loop_of_sums_over_devices():
    mesh = make_mesh(MeshConfig(data=8))

    def on_device(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.psum(y, "data") / 8, x)

    spread = jax.shard_map(
        on_device, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), check_vma=False
    )
    compiled = jax.jit(spread).lower(jnp.ones((8, 32))).compile()
    assert count_collectives(compiled.as_text()) == {"all-reduce": Collectives(5, 5 * 32 * 4)}
