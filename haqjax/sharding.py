"""Devices that share policies and images."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from haqjax.data import Split

POLICY, IMAGE = "policy", "image"  # axes of a mesh


def make_mesh(devices: int | Sequence[jax.Device] | None = None, *, policies: int = 1) -> Mesh:
    """Makes a mesh of two axes: policies are shared out over `policy`, images over `image`.

    Args:
      devices: these, the first so many, or all; of all hosts.
      policies: devices along the axis `policy`; 1 leaves all to the images, as training wants it.

    Raises:
      ValueError: there are fewer, or the axis `policy` does not divide them.

    >>> dict(make_mesh(1).shape)
    {'policy': 1, 'image': 1}
    """
    there = jax.devices()
    if isinstance(devices, int):
        if not 1 <= devices <= len(there):
            raise ValueError(f"a mesh of {devices} devices needs from 1 to the {len(there)} that there are")
        devices = there[:devices]
    chosen = there if devices is None else list(devices)
    if policies < 1 or len(chosen) % policies:
        raise ValueError(f"{len(chosen)} devices do not divide into {policies} for policies: give a divisor")
    grid = np.array(chosen).reshape(policies, -1)
    return Mesh(grid, (POLICY, IMAGE), axis_types=(AxisType.Auto, AxisType.Auto))


def suggest_policies(devices: int, policies: int, batches: int) -> int:
    """How many devices along the axis `policy` leave the least to do for each: a divisor of their number.

    Args:
      policies: judged in one call.
      batches: micro-batches of images that each policy is judged by.

    >>> suggest_policies(8, policies=4, batches=6), suggest_policies(8, policies=4, batches=1)
    (4, 8)
    """
    divisors = [count for count in range(1, devices + 1) if devices % count == 0]
    share = lambda count: math.ceil(policies / count) * math.ceil(batches * count / devices)
    return min(divisors, key=lambda count: (share(count), -count))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every array on each device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()), may_alias=False)


def place(tree: PyTree, mesh: Mesh, *axes: str | None) -> PyTree:
    """Arrays that every host holds in full, cut along their first axes; without `axes`, a copy on each device.

    Random keys are copied, too.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*axes))

    def put(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree)


def share(batch: Split, mesh: Mesh) -> tuple[Array, Array]:
    """Images and labels, each device along the axis `image` with its part of them.

    Args:
      batch: where several processes run, this one's part.

    Raises:
      ValueError: the devices' parts would differ in size.
    """
    devices = mesh.local_mesh.shape[IMAGE]
    if len(batch) % devices:
        raise ValueError(f"batch_size must be a multiple of the mesh's devices, got {len(batch)} images for {devices}")
    parts = NamedSharding(mesh, PartitionSpec(IMAGE))
    whole = lambda rows: jax.make_array_from_process_local_data(parts, rows)  # noqa: E731
    return whole(batch.images), whole(batch.labels)


def shard_policies(judge: jax.tree_util.Partial, mesh: Mesh) -> jax.tree_util.Partial:
    """The same judge of policies with each device judging its part of them, on all images.

    For a judge that cannot cut its images, such as one that fine-tunes; `haqjax.evaluation.make_evaluate` takes a mesh.

    >>> judge = jax.tree_util.Partial(lambda scale, policies: scale * policies.sum((1, 2)), jnp.float32(0.5))
    >>> shard_policies(judge, make_mesh(1))(jnp.ones((3, 2, 2))).tolist()
    [2.0, 2.0, 2.0]
    """
    return jax.tree_util.Partial(_over_policies(judge.func, mesh), *place(judge.args, mesh))


@functools.cache
def _over_policies(judge: Callable, mesh: Mesh) -> Callable:
    whole = PartitionSpec()

    def each(arguments: tuple, policies: Int[Array, "n L 2"]) -> PyTree:
        gather = lambda told: jax.lax.all_gather(told, (POLICY, IMAGE), tiled=True)
        return jax.tree.map(gather, judge(*arguments, policies))

    over = jax.shard_map(
        each, mesh=mesh, in_specs=(whole, PartitionSpec((POLICY, IMAGE))), out_specs=whole, check_vma=False
    )

    def shared(*arguments: Any) -> PyTree:
        *fixed, policies = arguments
        return jax.tree.map(lambda told: told[: len(policies)], over(tuple(fixed), fill_up(policies, mesh.size)))

    return shared


def fill_up(policies: Int[Array, "N L 2"], parts: int) -> Int[Array, "M L 2"]:
    """Policies in a number that divides into parts: the last is repeated."""
    return jnp.concatenate([policies, jnp.repeat(policies[-1:], -len(policies) % parts, axis=0)])
