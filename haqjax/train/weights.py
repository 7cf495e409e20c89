"""Trained parameters on disk."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = Any


def save_params(path: str | Path, params: Params) -> None:
    """Writes parameters to a folder, whole or not at all, in place of one that is there.

    The folder is an Orbax checkpoint of a flat dictionary, name to array, such as `blocks.3.depthwise.kernel`.

    Args:
      path: the folder; its parents are made.
      params: nested dictionaries of arrays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_params(f"{folder}/weights", {"classifier": {"bias": jnp.ones(2)}})
    ...     load_params(f"{folder}/weights", {"classifier": {"bias": jax.ShapeDtypeStruct((2,), "float32")}})
    {'classifier': {'bias': Array([1., 1.], dtype=float32)}}
    """
    import orbax.checkpoint as ocp  # slow to import, hence not above

    # Orbax writes to a sibling folder and renames it at the end.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), {n: np.asarray(leaf) for n, leaf in _flat(params).items()}, force=True)


def load_params(path: str | Path, like: Params) -> Params:
    """Reads parameters that `save_params` wrote.

    Args:
      path: the folder.
      like: parameters, or `jax.ShapeDtypeStruct`s, of the same structure: `outline(...).params` will do.

    Returns:
      Nested dictionaries as `like`, with the values of the folder.

    Raises:
      ValueError: nothing readable is there, or it belongs to another network; the message says which weight differs.
    """
    expected, found = _flat(like), _read(path)
    _check_same(path, expected, found)
    leaves = [jnp.asarray(found[name], leaf.dtype) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _flat(params: Params) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def _read(path: str | Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    if not Path(path).is_dir():
        raise ValueError(f"there are no saved parameters at {str(path)!r}")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(Path(path).absolute())
    except Exception as error:  # Orbax and what is below it raise many kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"cannot read the parameters at {str(path)!r}: {reason}") from error


def _check_same(path: str | Path, expected: dict[str, Any], found: dict[str, np.ndarray]) -> None:
    for what, names in (("lacks", expected.keys() - found.keys()), ("also has", found.keys() - expected.keys())):
        if names:
            raise ValueError(f"the parameters at {str(path)!r} are of another network: it {what} {min(names)!r}")
    for name, leaf in expected.items():
        if leaf.shape != found[name].shape:
            raise ValueError(
                f"the parameters at {str(path)!r} are of another network: {name!r} has shape {found[name].shape}, "
                f"expected {leaf.shape}"
            )
