"""Layers in loops and slices of one leaf are layers of their own, and compute what they computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haqjax
from haqjax.hardware import find_lifetimes
from haqjax.policies.cost import peak_memory
from haqjax.tracing.hooks import map_weights, with_hook
from haqjax.tracing.layer_table import layers


def draw(*sizes, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=sizes) / sizes[-1] ** 0.5, jnp.float32)


def stack(depth=4):
    names = {"up": (depth, 8, 16), "down": (depth, 16, 8), "scale": (depth, 8)}
    return {name: draw(*sizes, seed=seed) for seed, (name, sizes) in enumerate(names.items())}


def block(x, weights):
    return x + jax.nn.relu((x * weights["scale"][None]) @ weights["up"]) @ weights["down"]


def scanned(params, x, **options):
    """Blocks under a scan, with a head behind them."""
    y, norms = jax.lax.scan(lambda x, w: (block(x, w), jnp.abs(x).mean()), x, params["blocks"], **options)
    return y @ params["head"] + norms.mean()


def remat(params, x):
    body = jax.checkpoint(lambda x, w: (block(x, w), None), prevent_cse=False)
    return jax.lax.scan(body, x, params["blocks"])[0] @ params["head"]


def written_out(params, x, order=None):
    norms, depth = [], len(params["blocks"]["up"])
    for at in order or range(depth):
        norms.append(jnp.abs(x).mean())
        x = block(x, jax.tree.map(lambda leaf, at=at: leaf[at], params["blocks"]))
    return x @ params["head"] + jnp.stack(norms).mean()


PARAMS, X = {"blocks": stack(), "head": draw(8, 3, seed=9)}, draw(5, 8, seed=7)
NAMES = tuple(f"blocks.{name}[{at}]" for at in range(4) for name in ("up", "down"))


@pytest.mark.parametrize("apply", [scanned, remat, jax.jit(scanned), written_out])
def test_each_turn_has_layers_of_its_own(apply):
    table = layers(apply, PARAMS, X)
    assert table.names == (*NAMES, "head")
    assert table.macs.tolist() == [128] * 8 + [24] and table.weights.tolist() == [128] * 8 + [24]
    assert table.other_parameters == 32
    hooked = with_hook(apply, lambda layer, activation, weight, compute: compute(activation, weight))
    np.testing.assert_array_equal(jax.jit(hooked)(PARAMS, X), jax.jit(apply)(PARAMS, X))
    gradients = [jax.jit(jax.grad(lambda p, f=f: (f(p, X) ** 2).sum()))(PARAMS) for f in (hooked, apply)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *gradients)


def test_weights_of_turns_are_the_slices():
    found = map_weights(lambda layer, weight: weight, scanned, PARAMS, X)
    for at in range(4):
        np.testing.assert_array_equal(found[2 * at], PARAMS["blocks"]["up"][at])
        np.testing.assert_array_equal(found[2 * at + 1], PARAMS["blocks"]["down"][at])


def test_turns_run_backwards_where_the_scan_does():
    backwards = lambda params, x: scanned(params, x, reverse=True)
    table = layers(backwards, PARAMS, X)
    assert table.names[:2] == NAMES[-2:] and table.names[-1] == "head"
    hooked = with_hook(backwards, lambda layer, activation, weight, compute: compute(activation, weight))
    np.testing.assert_array_equal(hooked(PARAMS, X), backwards(PARAMS, X))


def test_what_turns_put_out_is_stacked_in_the_order_of_the_entries():
    outputs = lambda params, x: jax.lax.scan(lambda x, w: (x, x @ w["up"]), x, params["blocks"], reverse=True)[1]
    hooked = with_hook(outputs, lambda layer, activation, weight, compute: compute(activation, weight))
    np.testing.assert_array_equal(hooked(PARAMS, X), outputs(PARAMS, X))


def test_a_scanned_network_is_quantised_as_the_one_written_out():
    policy = jnp.asarray(np.random.default_rng(3).integers(2, 9, (9, 2)))
    found = []
    for apply in (scanned, written_out):
        ranges = haqjax.calibrate(apply, PARAMS, [X])
        found.append(jax.jit(haqjax.quantize(apply))(PARAMS, X, policy, ranges))
        split = haqjax.Split(np.asarray(X), np.zeros(5, np.int32))
        found.append(haqjax.make_evaluator(apply, PARAMS, split, ranges)(policy[None]).loss)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])


def test_turns_take_the_memory_of_the_blocks_written_out():
    def written_out(params, x):
        for at in range(4):
            x = block(x, jax.tree.map(lambda leaf, at=at: leaf[at], params["blocks"]))
        return x @ params["head"]

    policy = jnp.asarray(np.random.default_rng(3).integers(2, 9, (9, 2)))
    found = [float(peak_memory(find_lifetimes(apply, PARAMS, X), policy)) for apply in (remat, written_out)]
    assert found[0] == found[1] > 0


def test_loops_in_loops():
    params = {"w": draw(2, 3, 8, 8), "head": draw(8, 2)}

    def apply(params, x):
        inner = lambda x, w: (jnp.tanh(x @ w), None)
        outer = lambda x, w: (jax.lax.scan(inner, x, w)[0], None)
        return jax.lax.scan(outer, x, params["w"])[0] @ params["head"]

    assert layers(apply, params, X).names == (*(f"w[{i}][{j}]" for i in range(2) for j in range(3)), "head")
    hooked = with_hook(apply, lambda layer, activation, weight, compute: compute(activation, weight))
    np.testing.assert_array_equal(hooked(params, X), apply(params, X))


def test_one_turn_and_weights_made_in_the_loop():
    one = {"blocks": stack(1), "head": PARAMS["head"]}
    assert layers(scanned, one, X).names == ("blocks.up", "blocks.down", "head")

    def scaled(params, x):
        double = lambda x, w: (x @ (w * jnp.exp(params["s"])), None)
        return jax.lax.scan(double, x, 2 * params["w"])[0]

    params = {"w": draw(3, 8, 8), "s": jnp.float32(0.5)}
    assert layers(scaled, params, X).names == ("w[0]", "w[1]", "w[2]")


def test_slices_of_one_leaf_are_layers():
    params = {"qkv": draw(3, 8, 8), "fused": draw(8, 24)}

    def apply(params, x):
        q, k, v = (x @ w for w in params["qkv"])
        gate, up, down = jnp.split(params["fused"], 3, axis=1)
        return (q + k + v) @ gate + x @ up @ down

    with pytest.raises(ValueError, match="'fused.*' is read in two forms"):
        layers(lambda params, x: apply(params, x) @ params["fused"][:, :8], params, X)
    table = layers(apply, params, X)
    assert table.names == ("qkv[0]", "qkv[1]", "qkv[2]", "fused[:, 0:8]", "fused[:, 8:16]", "fused[:, 16:24]")
    assert table.macs.tolist() == [64] * 6
    ranges = haqjax.calibrate(apply, params, [X], rounding="nearest")
    y, q = apply(params, X), haqjax.quantize(apply)(params, X, jnp.full((6, 2), 8), ranges)
    assert float(jnp.linalg.norm(q - y) / jnp.linalg.norm(y)) < 0.05


def test_views_of_one_leaf_that_may_overlap_are_refused():
    params = {"w": draw(8, 8)}
    for apply in (
        lambda params, x: x @ params["w"][:4].T @ params["w"].T[4:],
        lambda params, x: x @ params["w"][:4].T @ params["w"].reshape(16, 4)[8:12],
        lambda params, x: jax.lax.scan(lambda x, w: (x * (x @ w)[:, None], None), x, params["w"].T)[0] @ params["w"][0],
        lambda params, x: x @ (params["w"][:4] + params["w"][4:]).T @ params["w"][4:],
    ):
        with pytest.raises(ValueError, match="'w.*' is read in two forms"):
            layers(apply, params, X)


def test_slices_after_a_squeeze_are_of_the_same_axes():
    def apply(params, x):
        return x @ params["w"][0][:, 4:8] @ params["w"][0:1, 0:2].reshape(4, -1)

    with pytest.raises(ValueError, match="'w.*' is read in two forms"):
        layers(apply, {"w": draw(3, 8, 8)}, X)


@pytest.mark.parametrize(
    "stacked",
    [
        lambda w: w[jnp.array([0, 0, 1, 1])],
        lambda w: w[jnp.array([1, 1])],
        lambda w: jnp.repeat(w, 2, axis=0),
        lambda w: jnp.broadcast_to(w[0], (4, 8, 8)),
        lambda w: jnp.concatenate([w, w]),
    ],
)
def test_turns_that_share_a_weight_are_refused(stacked):
    def apply(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stacked(params["w"]))[0]

    with pytest.raises(ValueError, match="'w.*' changes from turn to turn"):
        layers(apply, {"w": draw(2, 8, 8)}, X)


def test_a_scan_without_turns_has_no_layers():
    def apply(params, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params["w"])[0] @ params["head"]

    assert layers(apply, {"w": jnp.zeros((0, 8, 8)), "head": draw(8, 3)}, X).names == ("head",)
