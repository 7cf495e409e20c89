"""Check of a network's parameters: numbers that no compiled program can be trusted to pass on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, PyTree

VARIANCES = ("var", "running_var", "moving_variance")  # last part of a path: a square, never below zero


def check_parameters(params: PyTree) -> None:
    """Checks that all parameters are finite, and that no running variance is below zero.

    Logits do not always tell: a compiled program may lose a NaN on the way (see docs/numerics.md), so the parameters
    themselves are looked at. Leaves that are no floating arrays, and those that `jit` is tracing, are passed over.

    Raises:
      ValueError: names the parameter, and how many of its numbers are bad.

    >>> check_parameters({"w": np.ones(2), "norm": {"var": np.array([1.0, -1.0])}})
    Traceback (most recent call last):
    ValueError: parameter norm.var has 1 of 2 numbers below zero, which a variance never is: check the weights
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(getattr(leaf, "dtype", np.int32), jnp.inexact):
            continue
        values = np.asarray(leaf)
        finite = np.isfinite(values if values.dtype.kind in "fc" else values.astype(np.float32))  # bfloat16 is no kind
        _refuse(path, ~finite, "that are not finite")
        if _last(path) in VARIANCES:
            _refuse(path, values < 0, "below zero, which a variance never is")


def _refuse(path: tuple[Any, ...], bad: Bool[np.ndarray, "*shape"], fault: str) -> None:
    if bad.any():
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        raise ValueError(f"parameter {name} has {bad.sum()} of {bad.size} numbers {fault}: check the weights")


def _last(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path[-1:], simple=True).rpartition(".")[2]
