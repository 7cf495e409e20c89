"""A quantised network in NumPy: every layer's sums in 64-bit integers, all else one equation after another."""

import string

import jax
import jax.numpy as jnp
import numpy as np

from haqjax.quantizers.per_channel import broadcast_outputs
from haqjax.tracing.hooks import with_hook


def run_reference(apply, params, x, operands):
    """Runs one example after another, with the operands of `prepare_layers`; nothing is compiled together."""

    def hook(layer, activation, weight, compute):
        mine = operands[layer.index][layer.use]
        lowest, highest, per_unit = (np.asarray(of) for of in (mine.grid.lowest, mine.grid.highest, mine.grid.per_unit))
        codes = np.round(np.clip(np.asarray(activation), lowest, highest) * per_unit)
        sums = multiply_integers(layer, codes, mine.weights.integers).astype(np.float32)
        y = sums * np.asarray(broadcast_outputs(layer, mine.scale))
        return jnp.asarray(y if mine.bias is None else y + np.asarray(broadcast_outputs(layer, mine.bias)))

    network = with_hook(apply, hook)
    return np.concatenate([np.asarray(network(params, x[at : at + 1])) for at in range(len(x))])


def multiply_integers(layer, activation, weight):
    """Computes a layer on codes in 64-bit integers, convolutions tap by tap."""
    activation, weight = (np.asarray(codes).astype(np.int64) for codes in (activation, weight))
    return (_dense if layer.dense else _convolve)(layer, activation, weight)


def _dense(layer, activation, weight):
    left, right = (weight, activation) if layer.weight_at == 0 else (activation, weight)
    (of_left, of_right), (batch_left, batch_right) = layer.equation.params["dimension_numbers"]
    names = list(string.ascii_letters[: left.ndim])
    others = list(string.ascii_letters[26 : 26 + right.ndim])
    for mine, other in zip((*of_left, *batch_left), (*of_right, *batch_right), strict=True):
        others[other] = names[mine]
    free = [name for axis, name in enumerate(names) if axis not in (*of_left, *batch_left)]
    free += [name for axis, name in enumerate(others) if axis not in (*of_right, *batch_right)]
    output = [*(names[axis] for axis in batch_left), *free]
    return np.einsum(f"{''.join(names)},{''.join(others)}->{''.join(output)}", left, right)


def _convolve(layer, activation, weight):
    params = layer.equation.params
    axes, groups = params["dimension_numbers"], params["feature_group_count"]
    x = np.transpose(activation, (axes.lhs_spec[0], *axes.lhs_spec[2:], axes.lhs_spec[1]))
    w = np.transpose(weight, (*axes.rhs_spec[2:], axes.rhs_spec[1], axes.rhs_spec[0]))
    wide = [(size - 1) * apart + 1 for size, apart in zip(x.shape[1:-1], params["lhs_dilation"], strict=True)]
    spread = np.zeros((len(x), *wide, x.shape[-1]), np.int64)
    spread[(slice(None), *(slice(None, None, apart) for apart in params["lhs_dilation"]))] = x
    x = np.pad(spread, [(0, 0), *params["padding"], (0, 0)])
    rows = list(zip(x.shape[1:-1], w.shape[:-2], params["rhs_dilation"], params["window_strides"], strict=True))
    places = [(size - (kernel - 1) * dilation - 1) // stride + 1 for size, kernel, dilation, stride in rows]
    y = np.zeros((len(x), *places, w.shape[-1]), np.int64)
    each_in, each_out = x.shape[-1] // groups, w.shape[-1] // groups
    for tap in np.ndindex(w.shape[:-2]):
        starts = [t * dilation for t, (_, _, dilation, _) in zip(tap, rows, strict=True)]
        ends = [(count - 1) * stride + 1 for count, (*_, stride) in zip(places, rows, strict=True)]
        strides = [stride for *_, stride in rows]
        along = [slice(at, at + end, step) for at, end, step in zip(starts, ends, strides, strict=True)]
        patch = x[(slice(None), *along)]
        for group in range(groups):
            mine = slice(group * each_out, (group + 1) * each_out)
            y[..., mine] += patch[..., group * each_in : (group + 1) * each_in] @ w[tap][:, mine]
    return np.transpose(y, np.argsort((axes.out_spec[0], *axes.out_spec[2:], axes.out_spec[1])))


def same_bits(a, b):
    """Tells whether two arrays of float32 are the same to the last bit."""
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


def put_on_device(tree):
    """Makes device arrays of all leaves."""
    return jax.tree.map(jnp.asarray, tree)
