"""Bisection of a monotone condition, on the device or on the host."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def bisect(holds: Callable[[Any], Any], yes: Any, no: Any, steps: int) -> Any:
    """Moves `yes` towards `no` for as long as the condition holds there.

    Args:
      holds: true at `yes` and on the way from there to some point, false beyond it. Never asked at the ends.
      yes, no: arrays of one shape, one bisection an entry; whole numbers are bisected to whole numbers. Python floats
        are bisected on the host.
      steps: so many times the interval is cut in two.

    Returns:
      The last point at which the condition held, `yes` where it held nowhere between.

    >>> bisect(lambda x: x * x < 2.0, 0.0, 2.0, 20).__round__(3)
    1.414
    >>> bisect(lambda n: n * n > 50, jnp.array([100]), jnp.array([0]), 7).tolist()
    [8]
    >>> bisect(lambda n: n > -9, jnp.array([100]), jnp.array([-1]), 20).tolist()
    [0]
    """
    if isinstance(yes, float):
        for _ in range(steps):
            middle = (yes + no) / 2
            yes, no = (middle, no) if holds(middle) else (yes, middle)
        return yes

    def cut(_: int, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        yes, no = ends
        middle = (yes + no) // 2 if jnp.issubdtype(yes.dtype, jnp.integer) else (yes + no) / 2
        held = holds(middle) & (middle != no)  # between neighbours there is no whole number
        return jnp.where(held, middle, yes), jnp.where(held, no, middle)

    return jax.lax.fori_loop(0, steps, cut, (yes, no))[0]
