"""Rounded products: keeps a compiler from contracting `a * b + c` into one operation that rounds once.

A fused multiply-add gives other last bits than a product and a sum, and whether a compiler makes one depends on what it
puts into one kernel: on the device, the batch, what else is computed. Where every product is rounded, elementwise
arithmetic is that of IEEE 754 wherever it runs, and equals NumPy's and any other runtime's to the last bit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import Array, Float, Int

PRODUCTS = ("mul", "integer_pow", "square")
UNSIGNED = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}  # by bytes


def opaque_zero(positive: Float[Array, ""]) -> Int[Array, ""]:
    """Computes a zero that no compiler knows to be one: the sign bit of a number that is positive.

    >>> opaque_zero(jnp.float32(0.5)).item()
    0
    """
    return lax.bitcast_convert_type(positive.astype(jnp.float32), jnp.uint32) >> 31


@jax.custom_jvp
def round_product(product: Array, zero: Int[Array, ""]) -> Array:
    """Returns a product as it is, rounded before anything is added to it; `zero` is from `opaque_zero`.

    >>> round_product(jnp.float32(3), jnp.uint32(0)).item()
    3.0
    """
    whole = UNSIGNED[product.dtype.itemsize]
    bits = lax.bitcast_convert_type(product, whole) ^ zero.astype(whole).reshape((1,) * product.ndim)
    return lax.bitcast_convert_type(bits, product.dtype)


@round_product.defjvp
def _pass_through(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return round_product(*primals), tangents[0]


def rounds_products(zero: Int[Array, ""]) -> Callable[[JaxprEqn, Sequence[Any]], list[Any]]:
    """Makes what `with_hook` does after each equation: rounds the floats that come of a product."""

    def after(equation: JaxprEqn, outputs: Sequence[Any]) -> list[Any]:
        if not _multiplies(equation):
            return list(outputs)
        return [round_product(y, zero) if _is_float(y) else y for y in outputs]

    return after


def _is_float(y: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(y), jnp.floating) and jnp.result_type(y).itemsize in UNSIGNED


def _multiplies(equation: JaxprEqn) -> bool:
    """Tells a product, or a call or loop with one somewhere inside."""
    return equation.primitive.name in PRODUCTS or any(map(_holds_product, equation.params.values()))


def _holds_product(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_product, value))
    body = value.jaxpr if isinstance(value, ClosedJaxpr) else value
    return isinstance(body, Jaxpr) and any(map(_multiplies, body.eqns))
