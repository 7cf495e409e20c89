"""Sharding of policies and images over devices."""

import dataclasses
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
from haqjax.types import Evaluation, Evaluator

POLICY, IMAGE = "policy", "image"  # axes of a mesh


def make_mesh(devices: int | Sequence[jax.Device] | None = None, *, policies: int = 1) -> Mesh:
    """Makes a mesh of two axes: policies are cut along `policy`, images along `image`.

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


def suggest_policy_devices(devices: int, policies: int, batches: int) -> int:
    """Suggests how many devices along the axis `policy` leave the least to do for each: a divisor of their number.

    Args:
      policies: evaluated in one call.
      batches: micro-batches of images that each policy is evaluated on.

    >>> suggest_policy_devices(8, policies=4, batches=6), suggest_policy_devices(8, policies=4, batches=1)
    (4, 8)
    """

    def load(count: int) -> int:
        return math.ceil(policies / count) * math.ceil(batches * count / devices)

    divisors = [count for count in range(1, devices + 1) if devices % count == 0]
    return min(divisors, key=lambda count: (load(count), -count))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies every array to each device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()), may_alias=False)


def place(tree: PyTree, mesh: Mesh, *axes: str | None) -> PyTree:
    """Cuts arrays that every host holds in full along their first axes; without `axes`, copies them to each device.

    Random keys are copied, too.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*axes))

    def put(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree)


def shard_batch(batch: Split, mesh: Mesh) -> tuple[Array, Array]:
    """Cuts images and labels along the axis `image`, a part for each device.

    Args:
      batch: where several processes run, this one's part.

    Raises:
      ValueError: the devices' parts would differ in size.
    """
    devices = mesh.local_mesh.shape[IMAGE]
    if len(batch) % devices:
        raise ValueError(f"batch_size must be a multiple of the mesh's devices, got {len(batch)} images for {devices}")
    sharding = NamedSharding(mesh, PartitionSpec(IMAGE))
    images, labels = (jax.make_array_from_process_local_data(sharding, rows) for rows in (batch.images, batch.labels))
    return images, labels


def shard_policies(evaluator: Evaluator, mesh: Mesh) -> Evaluator:
    """Makes the same evaluator with each device evaluating its part of the policies, on all images.

    For one that cannot cut its images, such as one that fine-tunes; `haqjax.evaluation.make_evaluator` takes a mesh.

    >>> def evaluate(evaluator, policies, least):
    ...     return Evaluation(evaluator.params * policies.sum((1, 2)), jnp.zeros(len(policies)))
    >>> evaluator = Evaluator(evaluate, jnp.float32(0.125), None, None, None)
    >>> shard_policies(evaluator, make_mesh(1))(jnp.ones((3, 2, 2), int)).accuracy.tolist()
    [0.5, 0.5, 0.5]
    """
    placed = place(dataclasses.replace(evaluator, soft_loss=None), mesh)
    function = _make_sharded_function(evaluator.function, mesh)
    return dataclasses.replace(placed, function=function, soft_loss=evaluator.soft_loss, mesh=mesh)


def pad_policies(policies: Int[Array, "N L 2"], parts: int) -> Int[Array, "M L 2"]:
    """Repeats the last policy until their number divides into parts."""
    return jnp.concatenate([policies, jnp.repeat(policies[-1:], -len(policies) % parts, axis=0)])


@functools.cache
def _make_sharded_function(function: Callable[..., Evaluation], mesh: Mesh) -> Callable[..., Evaluation]:
    axes = (POLICY, IMAGE)
    whole, parts = PartitionSpec(), PartitionSpec(axes)

    def evaluate_part(evaluator: Evaluator, policies: Int[Array, "n L 2"], least: Array) -> Evaluation:
        found = function(evaluator, policies, least)
        return jax.tree.map(lambda values: jax.lax.all_gather(values, axes, tiled=True), found)

    over = jax.shard_map(evaluate_part, mesh=mesh, in_specs=(whole, parts, whole), out_specs=whole, check_vma=False)

    def evaluate(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Array | float) -> Evaluation:
        arrays = dataclasses.replace(evaluator, soft_loss=None)
        found = over(arrays, pad_policies(policies, mesh.size), jnp.asarray(least))
        return jax.tree.map(lambda values: values[: len(policies)], found)

    return evaluate
