#!/usr/bin/env bash
# XLA's flags for meshes of several devices, so that sums of gradients overlap with computation where they can.
#
#   source launch/xla_flags.sh gpu      adds to XLA_FLAGS
#   source launch/xla_flags.sh tpu      adds to LIBTPU_INIT_ARGS
#
# Source it on every machine before `r2rank` starts. Flags that are set already come last, so that their values count. An
# unknown flag ends the process, so every name was tried: those for GPUs with jaxlib 0.10.2 and 0.11.2, those for TPUs
# with libtpu 0.0.42.1. docs/performance.md, "Several slices", says what the flags change in compiled programs, and what
# overlaps without them. No flag has been timed on several machines or slices.
case "${1:-}" in
gpu)
  # Starts a collective as early, and ends it as late, as its data allow. The compiler of jax 0.10.2 does so by default;
  # others may not.
  r2rank_flags=(--xla_gpu_enable_latency_hiding_scheduler=true)
  # Where gradients are summed inside the loop over layers (mesh.fsdp=1, all items at once), the sum of one layer's ends
  # in the next iteration: 15 to 20 matrix products run meanwhile instead of 0 to 8.
  r2rank_flags+=(--xla_gpu_enable_pipelined_all_reduce=true)
  export XLA_FLAGS="${r2rank_flags[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
  unset r2rank_flags
  ;;
tpu)
  # libtpu 0.0.42 makes the same schedule without these; they are set for versions whose defaults differ.
  # Sums of one layer's gradients over data overlap with the next layer's backward pass, whatever the arrays' sizes.
  r2rank_flags=(--xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true)
  # Gathers along fsdp overlap with the products that do not need them yet.
  r2rank_flags+=(--xla_tpu_enable_async_collective_fusion=true)
  r2rank_flags+=(--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true)
  r2rank_flags+=(--xla_tpu_enable_async_collective_fusion_multiple_steps=true)
  r2rank_flags+=(--xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true)
  export LIBTPU_INIT_ARGS="${r2rank_flags[*]}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"
  unset r2rank_flags
  ;;
*)
  echo "xla_flags.sh: the platform must be gpu or tpu, got '${1:-}'; source launch/xla_flags.sh gpu" >&2
  # Sourced by a script with `set -e`, this ends the script. The exit is for a script that is run, not sourced.
  # shellcheck disable=SC2317
  return 2 2>/dev/null || exit 2
  ;;
esac
