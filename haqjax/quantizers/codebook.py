"""K-means weights: a codebook and assignments of every layer at every width, whose shared values can be trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from haqjax.quantizers.kmeans import CLUSTERS, flatten, shared_values, sort_values
from haqjax.quantizers.zero_cluster import hold_zero
from haqjax.tracing.hooks import Apply, map_weights
from haqjax.types import FULL_PRECISION, WEIGHT, WIDTHS, Codebook

Policy = Int[Array, "L 2"]


def make_codebook(apply: Apply, params: PyTree, x: PyTree) -> Codebook:
    """Clusters each layer's weights at 1..8 bits (k-means as in Han et al. 2016, section 3, and Wang et al. 2019).

    The squared error is that of the best clustering there is, or very close to it (benchmarks/kmeans.py measures how
    close). Nothing is drawn at random. A weight of no more than `2**bits` distinct values is kept to the last bit.
    Where a weight holds zeros, such as after pruning, zero is one of the values, and they stay zeros.

    Args:
      apply: pure function `apply(params, x)`.
      params: with their values; not under `jit`.
      x: only shapes are read.
    Returns:
      Assignments and codebooks, on the device.
    Raises:
      ValueError: a weight that is not finite; names the layer.

    >>> apply = lambda params, x: x @ params["w"]
    >>> codebook = make_codebook(apply, {"w": jnp.array([[1.0, 2.0], [5.0, 6.0]])}, jnp.ones((1, 2)))
    >>> codebook.codebooks[0, 0, :3].tolist(), codebook.assignments[0][0].tolist()
    ([1.5, 5.5, 5.5], [[0, 0], [1, 1]])
    """
    named = map_weights(lambda layer, weight: (layer.name, weight), apply, params, x)
    bad = [name for name, weight in named if not jnp.isfinite(weight).all()]
    if bad:
        raise ValueError(f"the weight of layer {bad[0]!r} is not finite ({len(bad)} such layers): check the weights")
    together = None if jax.default_backend() == "cpu" else len(named)
    with jax.enable_x64(True):
        return _cluster(tuple(weight for _, weight in named), together)


def codebook_weights(codebook: Codebook, policy: Policy, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """Looks up each layer's weight in its codebook at the policy's width.

    The gradient of a shared value is the sum over its members. Assignments stay as they are when codebooks are
    trained: differentiate with respect to `codebooks` and put them back with `codebook._replace`.

    Args:
      policy: weight and activation bits; weights 1..8, or 32 to leave a weight as it is. Traced: another width does
        not compile again.
      weights: the float weights, one a layer; they matter at 32 bits alone.
    Returns:
      One array a layer, of the shape and dtype of its weight.
    Raises:
      ValueError: codebooks of other layers than these, or a policy of another number of layers.

    >>> w, assignments = jnp.ones(3), jnp.zeros((8, 3), jnp.uint8).at[1].set(jnp.array([0, 3, 3], jnp.uint8))
    >>> codebook = Codebook((assignments,), jnp.zeros((1, 8, 256)))
    >>> def total(books):
    ...     return codebook_weights(codebook._replace(codebooks=books), jnp.array([[2, 8]]), (w,))[0].sum()
    >>> jax.grad(total)(codebook.codebooks)[0, 1, :4].tolist()
    [1.0, 0.0, 0.0, 2.0]
    """
    _check_shapes(codebook, policy, weights)
    bits = jnp.asarray(policy)[:, WEIGHT]
    column = jnp.clip(bits, 1, WIDTHS) - 1
    books = jnp.take_along_axis(jnp.asarray(codebook.codebooks), column[:, None, None], axis=1)[:, 0]

    def chosen(layer: int, weight: Array) -> Array:
        assignments = jnp.asarray(codebook.assignments[layer])[column[layer]]
        shared = books[layer].at[assignments].get(mode="promise_in_bounds").astype(weight.dtype)
        return jnp.where(bits[layer] >= FULL_PRECISION, weight, shared)

    return tuple(chosen(layer, weight) for layer, weight in enumerate(weights))


@functools.partial(jax.jit, static_argnums=1)
def _cluster(weights: tuple[Array, ...], together: int | None) -> Codebook:
    ordered = sort_values(weights)
    zeros = jnp.stack([(weight == 0).any() for weight in weights])
    shared = hold_zero(ordered, shared_values(ordered, together), zeros)
    last = jnp.max(jnp.where(jnp.isinf(shared), -jnp.inf, shared), axis=-1, keepdims=True)
    assignments = _assign(shared, *flatten(weights))
    ends = np.cumsum([weight.size + 1 for weight in weights])
    parts = [assignments[:, end - weight.size : end] for end, weight in zip(ends, weights, strict=True)]
    shaped = tuple(part.reshape(WIDTHS, *weight.shape) for part, weight in zip(parts, weights, strict=True))
    return Codebook(shaped, jnp.swapaxes(jnp.where(jnp.isinf(shared), last, shared), 0, 1))


def _assign(shared: Float[Array, "8 L 256"], flat: Float[Array, "T"], layer: Int[Array, "T"]) -> UInt8[Array, "8 T"]:
    """Finds the nearest shared value of each weight by bisection of the midpoints, which are exact in 64 bits."""
    exact = shared.astype(jnp.float64)
    midpoints = (exact[..., :-1] + exact[..., 1:]) / 2

    def at_width(midpoint: Float[Array, "L 255"]) -> UInt8[Array, "T"]:
        cluster = jnp.zeros(flat.shape, jnp.int32)
        for step in (CLUSTERS >> n for n in range(1, WIDTHS + 1)):
            cluster = jnp.where(flat >= midpoint[layer, cluster + step - 1], cluster + step, cluster)
        return cluster.astype(jnp.uint8)

    return jax.lax.map(at_width, midpoints)


def _check_shapes(codebook: Codebook, policy: Policy, weights: tuple[Array, ...]) -> None:
    found = [assignments.shape[1:] for assignments in codebook.assignments]
    wanted = [jnp.shape(weight) for weight in weights]
    if found != wanted:
        raise ValueError(f"the codebook is of weights {found}, but the network's are {wanted}: make one for it")
    if jnp.shape(policy) != (len(weights), 2):
        raise ValueError(f"policy has shape {jnp.shape(policy)}, but the codebook's layers need {(len(weights), 2)}")
