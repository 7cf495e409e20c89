"""Checks of parameters that come from outside, before a network computes with them."""

from collections.abc import Container, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haqjax.reading import quote

SHOWN = 3  # tensors that a message names
VARIANCES = ("var", "running_var", "moving_variance")  # last part of a path: a square, never below zero


def check_params(params: Any, source: str = "the parameters") -> None:
    """Checks that every parameter is a finite number, and that no variance is below zero.

    The outputs of a network do not tell: on a CPU, the fused reductions of XLA drop a NaN, so that a network with a NaN
    in its last block can have finite logits; docs/weights.md has the smallest program.

    Args:
      params: nested arrays; leaves under `var`, `running_var` or `moving_variance` are variances. What is no floating
        array passes, and what `jit` traces.
      source: where they come from, for the message.

    Raises:
      ValueError: names the first tensors, says what is wrong with them, and counts all.

    >>> check_params({"norm": {"mean": np.zeros(2), "var": np.array([1.0, -1.0])}})
    Traceback (most recent call last):
    ValueError: the parameters cannot be computed with: 'norm.var' has 1 of 2 variances below zero; ...
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    tensors = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    check_tensors(source, tensors, {name for name in tensors if name.split(".")[-1] in VARIANCES})


def check_tensors(source: str, tensors: Mapping[str, Any], variances: Container[str]) -> None:
    """Checks tensors by name as `check_params` does."""
    faults = [f"{quote(name)} {fault}" for name, fault in _faults(tensors, variances)]
    if faults:
        more = f" and {len(faults) - SHOWN} more tensors" if len(faults) > SHOWN else ""
        raise ValueError(
            f"{source} cannot be computed with: {', '.join(faults[:SHOWN])}{more}; take weights that were saved whole, "
            "from a training that did not diverge"
        )


def _faults(tensors: Mapping[str, Any], variances: Container[str]) -> Iterable[tuple[str, str]]:
    for name, leaf in tensors.items():
        if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(getattr(leaf, "dtype", np.int32), jnp.inexact):
            continue
        array = np.asarray(leaf)
        if strange := np.count_nonzero(~np.isfinite(array)):
            yield name, f"has {strange} of {array.size} numbers that are not finite"
        elif name in variances and (below := np.count_nonzero(array < 0)):
            yield name, f"has {below} of {array.size} variances below zero"
