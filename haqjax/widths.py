"""Widths that a policy may hold: a check on the host that names the layer, and a mask for compiled programs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

FULL_PRECISION = 32  # a policy entry of 32 leaves the tensor as it is
WIDTHS = 8  # bit-widths 1..8 have a column in every table
LINEAR, CODEBOOK = (2, 2), (1, 2)  # fewest bits of weights and activations, by what the weights are rounded to
PRICED = (1, 1)  # fewest bits that a cost table has
KINDS = ("weight", "activation")


def check_widths(
    policy: Any,
    least: tuple[int, int] = PRICED,
    names: Sequence[str] | Callable[[], Sequence[str]] = (),
    *,
    leave: bool = True,
    fractional: bool = False,
) -> None:
    """Checks the bits of policies on the host; does nothing where `jit` traces them, see `are_widths`.

    Linear quantisers have no level but zero at one bit, codebooks have two values.

    Args:
      policy: bits [..., L, 2] of weights and activations.
      least: fewest bits of each, such as `LINEAR`.
      names: of the layers, or a function that finds them; a layer without a name is called by its number.
      leave: allow 32, which leaves a tensor as it is.
      fractional: allow bits between two whole ones.

    Raises:
      ValueError: names the layer and its bits.

    >>> check_widths([[8, 8], [0, 4]], LINEAR, ["stem", "head"])
    Traceback (most recent call last):
    ValueError: layer 'head' has 0 weight bits: expected 2 to 8, or 32 to leave the tensor as it is
    """
    if isinstance(policy, jax.core.Tracer) or not getattr(policy, "is_fully_addressable", True):
        return
    bits = np.asarray(policy)
    if bits.dtype.kind not in ("iuf" if fractional else "iu"):
        raise ValueError(f"a policy of type {bits.dtype}: expected {'' if fractional else 'whole '}numbers of bits")
    bad = np.argwhere(~np.asarray(_inside(bits, least, leave)))
    if len(bad):
        *_, layer, column = bad[0].tolist()
        found = list(names() if callable(names) else names)
        name = repr(found[layer]) if layer < len(found) else str(layer)
        value, low = bits[tuple(bad[0])], least[column]
        rest = ", or 32 to leave the tensor as it is" if leave else ""
        raise ValueError(f"layer {name} has {value} {KINDS[column]} bits: expected {low} to {WIDTHS}{rest}")


def are_widths(policy: Array, least: tuple[int, int] = PRICED, *, leave: bool = True) -> Bool[Array, "*n"]:
    """Tells which policies hold widths alone; works under `jit`.

    Compiled programs return NaN for the others.

    >>> are_widths(jnp.array([[[8, 32]], [[8, 9]]])).tolist()
    [True, False]
    """
    return jnp.all(_inside(policy, least, leave), axis=(-2, -1))


def _inside(policy: Any, least: tuple[int, int], leave: bool) -> Any:
    low = np.reshape(np.array(least), (1,) * (policy.ndim - 1) + (2,))
    inside = (policy >= low) & (policy <= WIDTHS)
    return inside | (policy == FULL_PRECISION) if leave else inside
