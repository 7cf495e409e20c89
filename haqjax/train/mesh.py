"""Devices that share the images of a batch."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from haqjax.data import Split

AXIS = "image"


def make_mesh(devices: int | Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of one axis, over which a batch is cut into parts of one size.

    Args:
      devices: these, the first so many, or all.

    Raises:
      ValueError: there are fewer.

    >>> dict(make_mesh(1).shape)
    {'image': 1}
    """
    there = jax.devices()
    if isinstance(devices, int):
        if not 1 <= devices <= len(there):
            raise ValueError(f"a mesh of {devices} devices needs from 1 to the {len(there)} that there are")
        devices = there[:devices]
    return Mesh(np.array(there if devices is None else list(devices)), (AXIS,))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every array on each device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()), may_alias=False)


def share(batch: Split, mesh: Mesh) -> tuple[Array, Array]:
    """Images and labels, each device with its part of them.

    Args:
      batch: where several processes run, this one's part.

    Raises:
      ValueError: the devices' parts would differ in size.
    """
    devices = mesh.local_mesh.size
    if len(batch) % devices:
        raise ValueError(f"batch_size must be a multiple of the mesh's devices, got {len(batch)} images for {devices}")
    parts = NamedSharding(mesh, PartitionSpec(AXIS))
    whole = lambda rows: jax.make_array_from_process_local_data(parts, rows)  # noqa: E731
    return whole(batch.images), whole(batch.labels)
