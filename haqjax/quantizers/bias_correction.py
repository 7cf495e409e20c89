"""Bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2): keeps the mean of each output channel.

Rounding a weight moves what a layer puts out on average by the mean input times the weight's error. That is added back,
with the mean inputs of the float network.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from haqjax.quantizers.im2col import from_matrix, to_matrix
from haqjax.quantizers.input_moments import Moments
from haqjax.tracing.hooks import Apply, map_weights
from haqjax.tracing.jaxpr import Layer
from haqjax.types import Ranges

OTHER_USES = (
    "the ranges are of a network that reads its weights at another number of places, such as a loop that is written "
    "out for inputs of another length: calibrate on inputs of this size, or with correct_bias=False"
)


def mean_inputs(layer: Layer, weight: np.ndarray, sums: Moments) -> np.ndarray:
    """Returns the mean of each input, at the place of the weights that read it.

    Axes of outputs that read the same inputs have size one.
    """
    mean = np.asarray(sums.first) / np.maximum(np.asarray(sums.total), 1)
    whole = from_matrix(layer, np.broadcast_to(mean[..., None], to_matrix(layer, weight).shape))
    if layer.dense:
        alike = tuple(axis for axis in layer.channel_axes if axis not in layer.dot_axes[1])
    else:
        alike = layer.channel_axes if layer.equation.params["feature_group_count"] == 1 else ()
    first = tuple(slice(0, 1) if axis in alike else slice(None) for axis in range(whole.ndim))
    return np.ascontiguousarray(whole[first])


def corrects_bias(ranges: Ranges) -> bool:
    """Returns True where calibration kept the mean inputs."""
    return ranges.rounding is not None and ranges.rounding.means is not None


def output_bias(layer: Layer, weight: Array, quantised: Array, ranges: Ranges) -> Float[Array, "C"]:
    """Computes what to add to each output channel so that rounding the weights leaves its mean where it was.

    `sum over inputs of E[input] (weight - quantised)`, with the means of the float network. It has no gradient.
    """
    assert ranges.rounding is not None and ranges.rounding.means is not None
    if layer.product >= len(ranges.rounding.means):
        raise ValueError(OTHER_USES)
    summed = tuple(axis for axis in range(weight.ndim) if axis not in layer.channel_axes)
    error = (weight - quantised) * jnp.asarray(ranges.rounding.means[layer.product])
    return jax.lax.stop_gradient(jnp.sum(error, axis=summed).reshape(-1))


def output_biases(
    apply: Apply, params: PyTree, weights: tuple[Array, ...], x: PyTree, ranges: Ranges
) -> tuple[Float[Array, "C"] | None, ...] | None:
    """Computes `output_bias` for every use of a layer; None where the ranges correct nothing."""
    if not corrects_bias(ranges):
        return None

    def bias(layer: Layer, weight: Array) -> Float[Array, "C"] | None:
        if layer.lookup:
            return None
        return output_bias(layer, weight, layer.arrange(weights[layer.index]), ranges)

    found = map_weights(bias, apply, params, x, each_use=True)
    assert ranges.rounding is not None and ranges.rounding.means is not None
    if sum(one is not None for one in found) != len(ranges.rounding.means):
        raise ValueError(OTHER_USES)
    return found
