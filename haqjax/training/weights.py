"""Trained parameters on disk, as Orbax checkpoints."""

import contextlib
import errno
import glob
import itertools
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haqjax.reading import one_line
from haqjax.tracing.parameters import check_params

ABANDONED = 3600  # seconds after which an unfinished folder is taken for that of a killed process

Params = Any


def save_params(path: str | Path, params: Params) -> None:
    """Writes parameters to a folder, in place of those that are there.

    A reader finds the old or the new ones whole, also after the process was killed at any moment. Each time an Orbax
    checkpoint of a flat dictionary, name to array, such as `blocks.3.depthwise.kernel`, is written beside the folder
    and moved into it under the next number; then lower numbers go.

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

    folder = Path(path).absolute()
    for unfinished in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        if time.time() - unfinished.stat().st_mtime > ABANDONED:
            shutil.rmtree(unfinished, ignore_errors=True)
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(fresh / "0", {name: np.asarray(leaf) for name, leaf in _flat(params).items()})
        _move(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    for outdated in sorted(_numbers(folder))[:-1]:
        shutil.rmtree(folder / str(outdated), ignore_errors=True)


def load_params(path: str | Path, like: Params) -> Params:
    """Reads parameters that `save_params` wrote.

    Args:
      path: the folder.
      like: parameters, or `jax.ShapeDtypeStruct`s, of the same structure: `outline(...).params` will do.

    Returns:
      Nested dictionaries as `like`, with the values of the folder.

    Raises:
      ValueError: nothing readable is there, or it belongs to another network; the message says which weight differs.
        A weight that is not finite, or a variance below zero; names it.
    """
    expected, found = _flat(like), _read(path)
    _check_same(path, expected, found)
    leaves = [jnp.asarray(found[name], leaf.dtype) for name, leaf in expected.items()]
    params = jax.tree.unflatten(jax.tree.structure(like), leaves)
    check_params(params, f"the parameters at {str(path)!r}")
    return params


def _flat(params: Params) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def _move(fresh: Path, folder: Path) -> None:
    """Gives `fresh / "0"` its place in one step: with its folder where there is none, else as the next number."""
    with contextlib.suppress(OSError):  # something is there
        return os.rename(fresh, folder)
    for number in itertools.count(max(_numbers(folder), default=-1) + 1):
        try:
            return os.rename(fresh / "0", folder / str(number))
        except OSError as error:  # another process was faster
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


def _numbers(folder: Path) -> list[int]:
    return [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()]


def _read(path: str | Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    folder = Path(path).absolute()
    if not folder.is_dir():
        raise ValueError(f"there are no saved parameters at {str(path)!r}")
    while True:
        newest = max(_numbers(folder), default=None)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(folder if newest is None else folder / str(newest))
        except Exception as error:  # Orbax and what is below it raise many kinds
            if folder.is_dir() and max(_numbers(folder), default=None) != newest:
                continue  # another process has written newer ones, and removed these, in the meantime
            reason = one_line(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
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
