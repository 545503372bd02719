"""Map logical axes to mesh axes. Only this module does so and reads a mesh by its axes; others call its functions.

    data     splits users; parameters are copied along it
    fsdp     splits users and parameters; parameters are gathered where they are used, or before loops
    tensor   splits heads, MLP columns and the vocabulary

With several slices (`mesh.slices`) only data crosses the slow network between them.
A dimension that its mesh axis does not divide (two key-value heads on four tensor devices) is copied instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from r2rank_jax.config import MeshConfig, ModelConfig, RunConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.model.transformer import by_layer, initial_params
from r2rank_jax.slices import grouped_by_slice
from r2rank_jax.types import ListBatch, Params

LOGICAL_TO_MESH = {
    "embed": "fsdp",
    "vocabulary": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


MESH_AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the first `data x fsdp x tensor` devices of all processes.

    Args:
        config: sizes of the axes.
        devices: devices of a topology that programs are compiled for; None: the devices of all processes.

    Raises:
        ConfigError: fewer devices than the mesh needs, a process that would hold none of them, or another number of
            slices than `mesh.slices`.
    """
    available = jax.devices() if devices is None else devices
    if config.devices > len(available):
        raise ConfigError(
            f"mesh data={config.data} x fsdp={config.fsdp} x tensor={config.tensor} needs {config.devices} devices, "
            f"found {len(available)}; lower a mesh axis, or start more processes with launch/local.sh"
        )
    if devices is None and jax.process_count() > 1 and config.devices != len(available):
        raise ConfigError(
            f"{jax.process_count()} processes hold {len(available)} devices but the mesh uses {config.devices}; "
            f"set mesh.data so that data x fsdp x tensor = {len(available)}"
        )
    shape, names, types = (config.data, config.fsdp, config.tensor), MESH_AXES, (AxisType.Auto,) * 3
    groups = grouped_by_slice(config.slices, available[: config.devices])
    if len(groups) == 1:
        return jax.make_mesh(shape, names, axis_types=types, devices=groups[0])
    return Mesh(across_slices(shape, groups), names, axis_types=types)


def across_slices(shape: tuple[int, int, int], groups: Sequence[Sequence[Any]]) -> np.ndarray:
    """Arrange the devices of several slices as [data, fsdp, tensor].

    Only the data axis, which communicates least, crosses slices: each slice holds an equal, contiguous part of it.
    `jax.experimental.mesh_utils.create_hybrid_device_mesh` arranges in the same way, but takes either `slice_index` or
    single processes for groups, so it cannot join the processes of a machine that has several.

    Args:
        shape: sizes of the axes; the number of groups divides the first.
        groups: from `grouped_by_slice`.
    """
    data, fsdp, tensor = shape
    inside = data // len(groups), fsdp, tensor
    # A 4 x 4 torus has no axis of size 2, which then becomes half of one.
    arranged = [mesh_utils.create_device_mesh(inside, group, allow_split_physical_axes=True) for group in groups]
    return np.concatenate(arranged)


def mesh_of_shapes(config: MeshConfig) -> AbstractMesh:
    """A mesh without devices, which can split shapes but run nothing."""
    return AbstractMesh((config.data, config.fsdp, config.tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def splits_parameters(mesh: Mesh) -> bool:
    """Whether parameters are split along fsdp, so that they are gathered before they are used."""
    return mesh.shape["fsdp"] > 1


def gathered_shape(leaf: Any) -> tuple[int, ...]:
    """The shape that one device holds of an `abstract` leaf after a gather along fsdp."""
    shape = leaf.sharding.shard_shape(leaf.shape)
    return tuple(full if axis == "fsdp" else part for full, part, axis in zip(leaf.shape, shape, leaf.sharding.spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def users(mesh: Mesh) -> NamedSharding:
    """The leading axis U split over data x fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def by_logical_axes(mesh: Mesh, boxed: Any) -> Any:
    """Shardings for a pytree whose leaves may carry the logical axes that `model/` declares for each weight.

    Args:
        mesh: from `make_mesh`.
        boxed: abstract values; a leaf without logical axes is replicated.

    Returns:
        A tree of `NamedSharding` with the structure of the unboxed tree.
    """

    def sharding(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return replicated(mesh)
        axes = [LOGICAL_TO_MESH.get(name) if name else None for name in leaf.names]
        sizes = leaf.value.shape
        fits = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, sizes, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree.map(sharding, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def abstract(boxed: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings without values, for example to restore a checkpoint into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        meta.unbox(boxed),
        shardings,
    )


def abstract_params(mesh: Mesh, config: ModelConfig) -> Params:
    """The parameters of a model as `abstract` leaves."""
    boxed = jax.eval_shape(lambda: initial_params(config, jax.random.key(0)))
    return abstract(boxed, by_logical_axes(mesh, boxed))


def abstract_lists(mesh: Mesh, config: RunConfig, batch_users: int) -> ListBatch:
    """Shapes, types and shardings of a global batch, for compiling ahead of the first one."""
    data = config.data
    per_item = (batch_users, data.candidate_items)

    def leaf(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=users(mesh))

    return ListBatch(
        user=leaf(jnp.int32, batch_users),
        position=leaf(jnp.int32, batch_users),
        items=leaf(jnp.int32, *per_item),
        prefix=leaf(jnp.int32, batch_users, data.prefix_tokens),
        prefix_length=leaf(jnp.int32, batch_users),
        suffix=leaf(jnp.int32, *per_item, data.suffix_tokens),
        suffix_length=leaf(jnp.int32, *per_item),
        labels=leaf(jnp.float32, *per_item),
        mask=leaf(jnp.bool_, *per_item),
    )


class Part(NamedTuple):
    """Some of the equal parts that a batch is divided into."""

    places: tuple[int, ...]  # indices of these parts, ascending
    parts: int  # number of all parts


def part_of_batch(mesh: Mesh) -> Part:
    """The rows of every batch that this process must provide: those that its devices hold.

    There is one part for every place along data x fsdp. On a torus, the places of a process need not be adjacent.
    Processes whose devices differ only along the tensor axis hold the same users and provide the same rows.
    """
    places = mesh.devices.reshape(-1, mesh.shape["tensor"])
    process = jax.process_index()
    own = (i for i, devices in enumerate(places) if process in {device.process_index for device in devices})
    return Part(tuple(own), len(places))


def to_mesh(mesh: Mesh, local: Any) -> Any:
    """Make global arrays, split over users, from the rows of the batch that this process holds.

    Args:
        mesh: from `make_mesh`.
        local: pytree of NumPy arrays with the rows of `part_of_batch`, in the order of its places.
    """
    part, split = part_of_batch(mesh), users(mesh)

    def spread(x: Any) -> jax.Array:
        rows = np.asarray(x)
        share = len(rows) // len(part.places)

        def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start = part.places.index((index[0].start or 0) // share) * share
            return rows[start : start + share]

        return jax.make_array_from_callback((share * part.parts, *rows.shape[1:]), split, of_device)

    return jax.tree.map(spread, local)


def sum_over_users(mesh: Mesh, each: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Run `each(shared, split) -> (sums, rows)` on every device's own users, and add the sums once, at the end.

    Loops inside `each` contain no collectives except those of the tensor axis: parameters that are split along fsdp are
    gathered before the loops, and their gradients are reduced after them.
    """
    batch_axes = ("data", "fsdp")
    if mesh.size == mesh.shape["tensor"] > 1:  # no sum is needed, and XLA refuses one next to an automatic axis
        return each
    # A tensor axis of one device is made manual too, so that kernels that XLA cannot split compile.
    manual = {*batch_axes, "tensor"} if mesh.shape["tensor"] == 1 else {*batch_axes}

    def on_device(shared: Any, split: Any) -> tuple[Any, Any]:
        sums, rows = each(shared, split)
        return jax.lax.psum(sums, batch_axes), rows

    by_user = PartitionSpec(batch_axes)
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), by_user),
        out_specs=(PartitionSpec(), by_user),
        axis_names=manual,
        check_vma=False,
    )


def on_lanes(mesh: Mesh, abstract: Any) -> Any:
    """Shardings of the state of a rollout: the leading axis U over data x fsdp, heads of keys and values over tensor.

    Args:
        mesh: from `make_mesh`.
        abstract: pytree of shapes and dtypes.

    Returns:
        The same pytree with shardings.
    """

    def place(path: Any, x: Any) -> jax.ShapeDtypeStruct:
        axes: list[Any] = [("data", "fsdp")][: len(x.shape)]
        is_cache = any(getattr(part, "name", None) in ("k", "v", "new_k", "new_v") for part in path)  # [U, KV, ...]
        if is_cache and x.shape[1] % mesh.shape["tensor"] == 0:
            axes.append("tensor")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map_with_path(place, abstract)


def weights_for_decoding(mesh: Mesh, config: ModelConfig) -> Callable[[Params], Params]:
    """Make the copy of the parameters that a rollout uses for all its tokens.

    The copy is split by layer and gathered along fsdp, with matrices in the compute dtype. Matrices are used in that
    dtype anyway, so no bit of the result changes. Norms and the scoring head stay float32. Adapters are not merged into
    their matrices: bfloat16 would round the sum, and the policy that samples would not be the one that is trained.
    """

    def copy(params: Params) -> Params:
        layers = by_layer(params["layers"])  # before the cast, because a stacked norm has two axes
        return jax.tree.map(lambda x: x.astype(config.dtype) if x.ndim > 1 else x, params | {"layers": layers})

    def gathered(spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec)))

    whole = jax.tree.map(lambda leaf: leaf.sharding.spec, abstract_params(mesh, config))
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    of_layer = jax.tree.map(lambda spec: gathered(PartitionSpec(*spec[1:])), whole["layers"], is_leaf=is_spec)
    shardings = jax.tree.map(gathered, whole, is_leaf=is_spec) | {"layers": (of_layer,) * config.layers}
    return jax.jit(copy, out_shardings=shardings)


def gather(mesh: Mesh, tree: Any) -> Any:
    """Global arrays as NumPy arrays, complete on every process."""
    return jax.tree.map(np.asarray, _copy_to_all(mesh)(tree))


@functools.cache
def _copy_to_all(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def row_of_each_device(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(MESH_AXES))


def sum_along(mesh: Mesh, axis: str) -> Callable[[jax.Array], jax.Array]:
    """A program that does nothing but an all-reduce: it sums `row_of_each_device` over the devices along one axis."""
    rows = PartitionSpec(MESH_AXES)
    return jax.jit(
        jax.shard_map(lambda x: jax.lax.psum(x, axis), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    )


def split_parameter(mesh: Mesh) -> NamedSharding:
    """The leading axis split as much as parameters are: over fsdp x tensor, and copied along data."""
    return NamedSharding(mesh, PartitionSpec(("fsdp", "tensor")))
