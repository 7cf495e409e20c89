"""A weight that is read at several places, or in every turn of a loop, is one layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haqjax
from haqjax.data import Split
from haqjax.evaluation import estimate_gauss_newton_sensitivity
from haqjax.evaluation.comparison import compare
from haqjax.hardware import find_lifetimes
from haqjax.policies.cost import exact_cost, peak_memory
from haqjax.quantizers.arithmetic import choose_arithmetic
from haqjax.quantizers.rounding_offsets import to_nearest
from haqjax.quantizers.trainable import begin, quantize_learned
from haqjax.tracing.hooks import map_weights, with_hook, with_records
from haqjax.tracing.layer_table import layers
from haqjax.types import Rounding

EDGE = haqjax.machine("edge")


def draw(*sizes, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=sizes) / sizes[0] ** 0.5, jnp.float32)


X = draw(6, 8, seed=1)
SQUARE = {"w": draw(8, 8), "head": draw(8, 3, seed=2)}


def siamese(params, x):
    """Two inputs through one tower; `params` may be a list of copies of it, one a use."""
    first, second = params["w"] if isinstance(params["w"], list) else [params["w"]] * 2
    return jax.nn.relu(x @ first) @ params["head"] + jax.nn.relu(2 * x[:, ::-1] @ second).sum(1, keepdims=True)


def unrolled(params, x):
    """One cell three times."""
    cells = params["w"] if isinstance(params["w"], list) else [params["w"]] * 3
    for cell in cells:
        x = x + jax.nn.relu(x @ cell)
    return x @ params["head"]


def looped(params, x):
    """The same as a loop."""
    x, _ = jax.lax.scan(lambda x, _: (x + jax.nn.relu(x @ params["w"]), None), x, None, length=3)
    return x @ params["head"]


def carried(params, x):
    """The parameters go through the loop with the activations."""
    turn = lambda _, pair: (pair[0] + jax.nn.relu(pair[0] @ pair[1]["w"]), pair[1])
    x, params = jax.lax.fori_loop(0, 3, turn, (x, params))
    return x @ params["head"]


def rematerialised(params, x):
    turn = jax.checkpoint(lambda x, _: (x + jax.nn.relu(x @ params["w"]), None), prevent_cse=False)
    return jax.lax.scan(turn, x, None, length=3)[0] @ params["head"]


def until(params, x):
    """The same as a `while`, whose trip count no program tells."""
    turn = lambda state: (state[0] + 1, state[1] + jax.nn.relu(state[1] @ params["w"]))
    return jax.lax.while_loop(lambda state: state[0] < 3, turn, (0, x))[1] @ params["head"]


LOOPS = [looped, carried, rematerialised, until]


def copies(params, count):
    return params | {"w": [params["w"]] * count}


def expand(ranges, rows, factor_columns):
    """Ranges of a network with a copy of the weight for each use, from those of one that reads it several times."""
    rounding = ranges.rounding
    columns = np.concatenate([np.arange(*factor_columns[row]) for row in rows])
    wide = Rounding(
        tuple(rounding.offsets[row] for row in rows),
        rounding.factor[:, columns],
        rounding.means if len(rounding.means) == len(rows) else tuple(rounding.means[row] for row in rows),
        tuple(rounding.origin[row] for row in rows),
    )
    rows = np.array(rows)
    return dataclasses.replace(
        ranges, clip=ranges.clip[rows], signed=ranges.signed[rows], reached=ranges.reached[rows], rounding=wide
    )


@pytest.mark.parametrize("apply, count, tail", [(siamese, 2, 1), (unrolled, 3, 3)])
def test_uses_are_one_row_and_compute_what_copies_of_the_weight_would(apply, count, tail):
    table = layers(apply, SQUARE, X)
    assert table.names == ("w", "head") and table.weights.tolist() == [64, 24]
    assert table.macs.tolist() == [64 * count, 24] and table.other_parameters == 0
    ranges = haqjax.calibrate(apply, SQUARE, [X])
    rows = [0, 1, 0] if apply is siamese else [0] * count + [1]
    params = copies(SQUARE, count)
    order = map_weights(lambda layer, weight: layer.name, apply, params, X)
    assert [name == "head" for name in order] == [row == 1 for row in rows]
    wide = expand(ranges, rows, [(0, 8), (8, 11)])
    for bits in ([[2, 3], [5, 4]], [[8, 8], [8, 8]], [[32, 4], [3, 32]]):
        policy = jnp.array(bits)
        found = haqjax.quantize(apply)(SQUARE, X, policy, ranges)
        np.testing.assert_array_equal(found, haqjax.quantize(apply)(params, X, policy[jnp.array(rows)], wide))
        learned = quantize_learned(apply)(begin(SQUARE, policy, ranges), X, policy, ranges)
        nearest = haqjax.quantize(apply)(SQUARE, X, policy, to_nearest(ranges))
        np.testing.assert_allclose(learned, nearest, rtol=1e-4, atol=1e-5)


def test_calibration_covers_the_inputs_of_all_uses():
    for apply in (siamese, unrolled, *LOOPS):
        ranges = haqjax.calibrate(apply, SQUARE, [X], method="max")
        inputs = dict[int, float]()

        def hook(layer, activation, weight, compute, inputs=inputs):
            largest = float(np.abs(activation).max())
            inputs[layer.index] = max(inputs.get(layer.index, 0.0), largest)
            return compute(activation, weight)

        with_hook(siamese if apply is siamese else unrolled, hook)(SQUARE, X)
        np.testing.assert_allclose(ranges.clip[:, 1, 7], [inputs[0], inputs[1]], rtol=1e-5)


@pytest.mark.parametrize("apply", LOOPS)
def test_a_loop_is_one_row_and_computes_what_its_turns_written_out_do(apply):
    turns = {"turns": 3} if apply is until else {}
    table = layers(apply, SQUARE, X, **turns)
    written_out = layers(unrolled, SQUARE, X)
    assert table.names == written_out.names and table.macs.tolist() == written_out.macs.tolist()
    assert table.repeats.tolist() == [3, 1]
    costs = [haqjax.cost_table(EDGE, one) for one in (table, written_out)]
    policy = np.array([[3, 5], [8, 4]])
    assert exact_cost(costs[0], policy) == pytest.approx(exact_cost(costs[1], policy), nan_ok=True)
    ranges = haqjax.calibrate(apply, SQUARE, [X])
    other = haqjax.calibrate(unrolled, SQUARE, [X])
    # Rows are drawn from each turn: with six examples, all of them in both.
    np.testing.assert_allclose(ranges.clip, other.clip, rtol=2e-2)
    means = np.mean(other.rounding.means[:3], axis=0)
    np.testing.assert_allclose(ranges.rounding.means[0], means, rtol=1e-4, atol=1e-6)
    same = dataclasses.replace(
        ranges, rounding=ranges.rounding._replace(means=(*[ranges.rounding.means[0]] * 3, ranges.rounding.means[1]))
    )
    for bits in ([[3, 4], [5, 6]], [[8, 8], [8, 8]], [[32, 32], [32, 32]]):
        policy = jnp.array(bits)
        found = jax.jit(haqjax.quantize(apply))(SQUARE, X, policy, ranges)
        expected = haqjax.quantize(unrolled)(SQUARE, X, policy, same)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_while_needs_the_number_of_its_turns():
    with pytest.raises(ValueError, match=r"layer 'w' is in a `while`.* turns=10"):
        layers(until, SQUARE, X)
    with pytest.raises(ValueError, match="turns is 0"):
        layers(until, SQUARE, X, turns=0)
    assert layers(until, SQUARE, X, turns=10).macs.tolist() == [640, 24]
    keep = lambda layer, activation, weight, compute: (compute(activation, weight), activation)
    assert with_records(until, keep)(SQUARE, X)[1][0].shape == (3, 6, 8)
    with pytest.raises(ValueError, match="outside of `jit`"):
        jax.jit(with_records(until, keep))(SQUARE, X)


def test_gradients_of_uses_add_up():
    policy = jnp.array([[4, 4], [6, 6]])
    for apply, count in ((unrolled, 3), (looped, 3)):
        ranges = haqjax.calibrate(apply, SQUARE, [X], rounding="nearest", correct_bias=False)
        gradient = jax.grad(lambda p, f=apply, r=ranges: (haqjax.quantize(f)(p, X, policy, r) ** 2).sum())(SQUARE)
        rows = np.array([0] * count + [1])
        wide = dataclasses.replace(
            ranges, clip=ranges.clip[rows], signed=ranges.signed[rows], reached=ranges.reached[rows]
        )
        loss = lambda p, r=wide, n=rows: (haqjax.quantize(unrolled)(p, X, policy[n], r) ** 2).sum()
        apart = jax.grad(loss)(copies(SQUARE, count))
        np.testing.assert_allclose(gradient["w"], sum(apart["w"]), rtol=1e-4, atol=1e-5)


def autoencoder(params, x):
    return jax.nn.relu(x @ params["w"]) @ params["w"].T


def tied(params, x):
    """A head that is the transposed first matrix, with the same channels: what is summed over are columns of both."""
    return jax.nn.relu(jnp.einsum("bi,oi->bo", x, params["w"]) @ params["square"]).sum(1)[:, None] + x @ params["w"].T


@pytest.mark.parametrize("apply", [autoencoder, tied])
def test_a_transposed_use_reads_the_same_levels(apply):
    params = {"w": draw(8, 5), "square": draw(8, 8, seed=4)} if apply is autoencoder else None
    params = params or {"w": draw(5, 8), "square": draw(5, 8, seed=4)}
    table = layers(apply, params, X)
    assert table.names[0] == "w" and table.weights[0] == 40 and table.macs[0] == 80
    ranges = haqjax.calibrate(apply, params, [X])
    uses = map_weights(lambda layer, weight: layer, apply, params, X, each_use=True)
    shared = [use for use in uses if use.index == 0]
    assert len(shared) == 2 and shared[0].one_scale == (apply is autoencoder)
    prepared = haqjax.quantizers.integer_layers.prepare_layers(apply, params, X, jnp.full((len(table), 2), 3), ranges)
    first, second = prepared.operands()[0]
    values = [
        np.asarray(one.weights.integers) * np.asarray(one.scale) / np.asarray(prepared.grids.step[0])
        if use.channel_axes == (1,)
        else np.asarray(one.weights.integers) * np.asarray(one.scale)[:, None] / np.asarray(prepared.grids.step[0])
        for use, one in zip(shared, (first, second), strict=True)
    ]
    turned = values[1] if shared[1].order is None else values[1].transpose(np.argsort(shared[1].order))
    np.testing.assert_allclose(values[0], turned, rtol=1e-6)
    whole = haqjax.quantize(apply)(params, X, jnp.full((len(table), 2), 32), ranges)
    np.testing.assert_allclose(whole, apply(params, X), rtol=1e-5, atol=1e-6)
    close = haqjax.quantize(apply)(params, X, jnp.full((len(table), 2), 8), ranges)
    assert np.linalg.norm(close - apply(params, X)) < 0.04 * np.linalg.norm(apply(params, X))
    assert len(choose_arithmetic(apply, params, X, ranges)) == len(table)


def pyramid(params, x):
    """A head on maps of two sizes."""
    kinds = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    head = lambda map: jax.lax.conv_general_dilated(map, params["head"], **kinds)
    return head(x), head(jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"))


def test_a_head_on_maps_of_two_sizes_is_priced_for_both():
    params, x = {"head": draw(3, 3, 4, 5)}, draw(2, 8, 8, 4, seed=3)
    table = layers(pyramid, params, x)
    assert table.names == ("head",) and table.macs.tolist() == [180 * (64 + 16)]
    assert table.further.macs.tolist() == [180 * 16] and table.further_of.tolist() == [0]
    alone = [layers(lambda p, x, at=at: pyramid(p, x)[at], params, x) for at in (0, 1)]
    together, *apart = (haqjax.cost_table(EDGE, one) for one in (table, *alone))
    policy = np.array([[4, 6]])
    found, first, second = (exact_cost(cost, policy) for cost in (together, *apart))
    for resource in ("latency", "energy", "bops"):
        assert found[resource] == pytest.approx(first[resource] + second[resource])
    assert found["size"] == first["size"]
    ranges = haqjax.calibrate(pyramid, params, [x])
    for got, expected in zip(haqjax.quantize(pyramid)(params, x, policy, ranges), pyramid(params, x), strict=True):
        assert np.linalg.norm(got - expected) < 0.2 * np.linalg.norm(expected)


def routed(params, x):
    """A mixture of experts: which one is taken depends on the input."""
    expert = (x @ params["router"]).mean() > 0
    branches = (lambda x: jax.nn.relu(x @ params["a"]), lambda x: x @ params["b"] @ params["c"])
    return jax.lax.cond(expert, *branches, x) @ params["head"]


ROUTED = {"router": draw(8, 1), "a": draw(8, 4, seed=1), "b": draw(8, 2, seed=2), "c": draw(2, 4, seed=3)}
ROUTED["head"] = draw(4, 3, seed=5)


def test_branches_have_rows_of_their_own():
    table = layers(routed, ROUTED, X)
    assert sorted(table.names) == ["a", "b", "c", "head", "router"] and table.macs.sum() == 8 + 32 + 16 + 8 + 12
    policy = jnp.full((5, 2), 8)
    ranges = haqjax.calibrate(routed, ROUTED, [X, -X], rounding="nearest")
    assert ranges.reached.all()
    for x in (X, -X):
        found = jax.jit(haqjax.quantize(routed))(ROUTED, x, policy, ranges)
        assert np.linalg.norm(found - routed(ROUTED, x)) < 0.04 * np.linalg.norm(routed(ROUTED, x))


def test_a_branch_that_is_never_taken_is_left_in_floating_point():
    taken = bool((X @ ROUTED["router"]).mean() > 0)
    with pytest.warns(UserWarning, match="was zero throughout calibration"):
        ranges = haqjax.calibrate(routed, ROUTED, [X])
    names = np.array(layers(routed, ROUTED, X).names)
    assert sorted(names[~ranges.reached]) == (["b", "c"] if taken else ["a"])
    assert np.isfinite(haqjax.quantize(routed)(ROUTED, -X, jnp.full((5, 2), 8), ranges)).all()


def test_the_estimates_add_up_uses_and_refuse_loops():
    split = Split(np.asarray(X).reshape(6, 2, 4, 1), np.array([0, 1, 2, 0, 1, 2], np.int32))
    flat = lambda apply: lambda params, x: apply(params, x.reshape(len(x), -1))
    for method in (estimate_gauss_newton_sensitivity, haqjax.evaluation.curvature.estimate_hessian_sensitivity):
        apply = flat(unrolled)
        ranges = haqjax.calibrate(apply, SQUARE, [split.images])
        found = method(apply, SQUARE, split, ranges, key=jax.random.key(0))
        assert found.shape == (2, 2, 8) and (found[:, :, 1] >= found[:, :, 6]).all()
        with pytest.raises(ValueError, match="'w' runs in a loop"):
            method(flat(looped), SQUARE, split, ranges, key=jax.random.key(0))


def test_signal_and_noise_count_all_uses():
    split = Split(np.asarray(X).reshape(6, 2, 4, 1), np.array([0, 1, 2, 0, 1, 2], np.int32))
    flat = lambda apply: lambda params, x: apply(params, x.reshape(len(x), -1))
    ranges = haqjax.calibrate(flat(looped), SQUARE, [split.images], rounding="nearest", correct_bias=False)
    policy = jnp.full((2, 2), 5)
    noises = [compare(flat(f), SQUARE, split, policy, ranges).noise for f in (looped, unrolled)]
    np.testing.assert_allclose(*noises, rtol=1e-3)


def test_turns_take_the_memory_of_one():
    memory = [peak_memory(find_lifetimes(apply, SQUARE, X), np.full((2, 2), 8)) for apply in (unrolled, looped, until)]
    assert memory[0] == memory[1] == memory[2] > 0


def test_a_weight_that_is_computed_twice_in_the_same_way_is_one():
    normal = lambda w: 3 * w / jnp.linalg.norm(w)  # a call of its own each time
    apply = lambda params, x: jnp.tanh(x @ normal(params["w"])) @ normal(params["w"])
    table = layers(apply, SQUARE, X)
    assert table.names == ("w",) and table.macs.tolist() == [128]
    with pytest.raises(ValueError, match="'w' is read in two forms"):
        layers(lambda params, x: jnp.tanh(x @ normal(params["w"])) @ params["w"], SQUARE, X)


def test_a_loop_over_the_examples_is_no_loop_of_one():
    mapped = lambda params, x: jax.lax.map(lambda row: jax.nn.relu(row @ params["w"]) @ params["head"], x)
    table = layers(mapped, SQUARE, X)
    assert table.macs.tolist() == [64, 24] and table.repeats is None
    split = Split(np.asarray(X).reshape(6, 2, 4, 1), np.array([0, 1, 2, 0, 1, 2], np.int32))
    apply = lambda params, x: mapped(params, x.reshape(len(x), -1))
    plain = lambda params, x: jax.nn.relu(x.reshape(len(x), -1) @ params["w"]) @ params["head"]
    ranges = haqjax.calibrate(plain, SQUARE, [split.images], rounding="nearest", correct_bias=False)
    policy = jnp.full((2, 2), 5)
    noises = [compare(f, SQUARE, split, policy, ranges, batch_size=4).noise for f in (apply, plain)]
    np.testing.assert_allclose(*noises, rtol=1e-4)


def stacked_cells(params, x):
    """Layers under a scan, each with a loop over time in it."""

    def layer(rows, w):
        def step(state, row):
            state = jnp.tanh(row @ w["ih"] + state @ w["hh"])
            return state, state

        return jax.lax.scan(step, jnp.zeros((rows.shape[1], 8)), rows)[1], None

    rows, _ = jax.lax.scan(layer, x.swapaxes(0, 1), {"ih": params["ih"], "hh": params["hh"]})
    return rows[-1] @ params["head"]


def test_a_loop_in_a_scan_over_layers_has_a_row_for_each_layer():
    params = {"ih": draw(3, 8, 8), "hh": draw(3, 8, 8, seed=1), "head": draw(8, 4, seed=2)}
    x = draw(4, 5, 8, seed=3)
    table = layers(stacked_cells, params, x)
    assert table.names == ("ih[0]", "hh[0]", "ih[1]", "hh[1]", "ih[2]", "hh[2]", "head")
    assert table.macs.tolist() == [5 * 64] * 6 + [32]
    ranges = haqjax.calibrate(stacked_cells, params, [x])
    whole, found = stacked_cells(params, x), haqjax.quantize(stacked_cells)(params, x, jnp.full((7, 2), 8), ranges)
    assert 0 < np.linalg.norm(found - whole) < 0.04 * np.linalg.norm(whole)


def test_shared_weights_next_to_weights_of_each_turn():
    mixed = lambda params, x: jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w) @ params["w"], None), x, params["v"])[0]
    table = layers(mixed, {"w": draw(8, 8), "v": draw(3, 8, 8, seed=1)}, X)
    assert table.names == ("v[0]", "w", "v[1]", "v[2]") and table.macs.tolist() == [64, 192, 64, 64]
    assert table.weights.sum() == 4 * 64 and table.other_parameters == 0


def test_calibration_of_a_long_loop_covers_all_features():
    """Each turn gives few samples, and others than the turn before."""
    params, turns = {"w": draw(16, 16), "h": draw(16, 3, seed=5)}, 300
    rows = draw(4, turns, 16, seed=1) * jnp.where(jnp.arange(16) % 3 == 0, 0.04, 4.0).reshape(1, 1, 16)
    mapped = lambda p, x: jax.lax.map(lambda row: jnp.tanh(row @ p["w"]), x.transpose(1, 0, 2)).mean(0) @ p["h"]
    plain = lambda p, x: jnp.tanh(x @ p["w"]).mean(1) @ p["h"]
    whole, errors = plain(params, rows), []
    for apply in (mapped, plain):
        ranges = haqjax.calibrate(apply, params, [rows])
        for bits in (4, 8):
            found = haqjax.quantize(plain)(params, rows, jnp.array([[8, bits], [8, 8]]), ranges)
            errors.append(np.linalg.norm(found - whole) / np.linalg.norm(whole))
    assert errors[0] < 1.3 * errors[2] and errors[1] < max(0.04, 1.3 * errors[3])


@pytest.mark.parametrize("other", [(((2, 1), (1, 0)), ((), ())), (((1, 2), (0, 1)), ((), ()))])
def test_moments_of_uses_are_added_only_where_they_lie_alike(other):
    params, x = {"w": draw(2, 4, 5)}, draw(64, 2, 4, seed=1) * jnp.array([1, 10.0, 0.1, 3.0]).reshape(1, 1, 4)
    first = (((1, 2), (0, 1)), ((), ()))
    apply = lambda p, x: jax.lax.dot_general(x, p["w"], first) + jax.lax.dot_general(x**2, p["w"], other)
    ranges = haqjax.calibrate(apply, params, [x])
    errors = [
        np.abs(haqjax.quantize(apply)(params, x, jnp.array([[bits, 8]]), one) - apply(params, x)).mean()
        for one in (ranges, haqjax.calibrate(apply, params, [x], rounding="nearest"))
        for bits in (2, 3)
    ]
    assert errors[0] <= 1.2 * errors[2] and errors[1] <= 1.2 * errors[3]


@pytest.mark.parametrize("groups", [(2, 1), (1, 2)])
def test_a_kernel_of_two_group_counts(groups):
    params, x = {"k": draw(3, 3, 4, 8)}, draw(2, 5, 5, 8, seed=3)
    apply = lambda params, x: sum_convs(params, x, groups)
    ranges, whole = haqjax.calibrate(apply, params, [x]), apply(params, x)
    found = haqjax.quantize(apply)(params, x, jnp.array([[8, 8]]), ranges)
    assert np.linalg.norm(found - whole) < 0.04 * np.linalg.norm(whole)


def sum_convs(params, x, groups):
    kinds = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    parts = [jax.lax.conv_general_dilated(x[..., : 4 * n], params["k"], feature_group_count=n, **kinds) for n in groups]
    return sum(parts)


def test_a_weight_contracted_over_its_other_axis():
    params = {"w": draw(8, 5)}
    apply = lambda p, x: jnp.einsum("bo,io->bi", jnp.tanh(x @ p["w"]), p["w"])
    ranges = haqjax.calibrate(apply, params, [X])
    found = haqjax.quantize(apply)(params, X, jnp.array([[8, 8]]), ranges)
    assert np.linalg.norm(found - apply(params, X)) < 0.04 * np.linalg.norm(apply(params, X))


def test_turns_of_known_loops_count_beside_those_of_a_while():
    inner = lambda p, x: jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(s[1] @ p["w"])), (0, x))
    around = lambda p, x: jax.lax.scan(lambda h, _: (inner(p, h)[1], None), x, None, length=5)[0]
    assert layers(around, {"w": SQUARE["w"]}, X, turns=10).macs.tolist() == [5 * 10 * 64]
    body = lambda p, s: jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), s, None, length=3)[0]
    within = lambda p, x: jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, body(p, s[1])), (0, x))[1]
    assert layers(within, {"w": SQUARE["w"]}, X, turns=10).macs.tolist() == [3 * 10 * 64]
    alone = lambda p, row: jax.lax.while_loop(lambda h: h.sum() < 1, lambda h: jnp.tanh(h @ p["w"]) + 1, row)
    with pytest.raises(ValueError, match="a `while` under `vmap`"):
        layers(lambda p, x: jax.vmap(lambda row: alone(p, row))(x), {"w": SQUARE["w"]}, X, turns=2)


@pytest.mark.parametrize("apply", [looped, unrolled, until])
def test_a_loop_that_begins_with_the_input_reads_it(apply):
    assert layers(apply, SQUARE, X, turns=3).outer.tolist() == [True, True]


def test_a_loop_takes_the_memory_of_its_turns_written_out():
    params, x = {"a": draw(100, 10), "b": draw(10, 100, seed=1), "h": draw(100, 3, seed=2)}, draw(1, 100)
    step = lambda p, h, c: jnp.tanh((h + c) @ p["a"]) @ p["b"]
    loop = lambda p, x: jax.lax.scan(lambda h, _: (step(p, h, x), None), x, None, length=3)[0] @ p["h"]
    plain = lambda p, x: step(p, step(p, step(p, x, x), x), x) @ p["h"]
    outputs = lambda p, x: jax.lax.scan(lambda h, _: (step(p, h, h), h), x, None, length=6)[1].sum(0) @ p["h"]
    policy = np.array([[8, 8], [8, 8], [8, 2]])
    found = [float(peak_memory(find_lifetimes(apply, params, x), policy)) for apply in (loop, plain, outputs)]
    assert found[0] == found[1] and found[2] >= 5 * 100 * 2 / 8 + found[0] / 2


def test_ranges_of_another_number_of_uses_are_refused():
    def cells(params, rows):
        state = jnp.zeros((len(rows), 8))
        for at in range(rows.shape[1]):
            state = jnp.tanh((state + rows[:, at]) @ params["w"])
        return state @ params["head"]

    long, short = draw(4, 6, 8, seed=3), draw(4, 3, 8, seed=3)
    for one, other in ((long, short), (short, long)):
        ranges = haqjax.calibrate(cells, SQUARE, [one])
        with pytest.raises(ValueError, match="another number of places"):
            haqjax.quantize(cells)(SQUARE, other, jnp.full((2, 2), 8), ranges)
    with pytest.raises(ValueError, match="batch 1 is of a size at which"):
        haqjax.calibrate(cells, SQUARE, [long, short])
    free = haqjax.calibrate(cells, SQUARE, [long], correct_bias=False)
    assert np.isfinite(haqjax.quantize(cells)(SQUARE, short, jnp.full((2, 2), 8), free)).all()


def test_a_weight_joined_of_several_parameters_stores_them_all():
    params = {name: draw(8, 8, seed=at) for at, name in enumerate("qkv")} | {"bias": draw(24)}
    fused = lambda p, x: x @ jnp.concatenate([p["q"], p["k"], p["v"]], 1) + p["bias"][None]
    table = layers(fused, params, X)
    assert table.weights.tolist() == [192] and table.other_parameters == 24 and table.names == ("k",)
    with pytest.raises(ValueError, match="is read in two forms"):
        layers(lambda p, x: fused(p, x)[:, :8] @ p["k"], params, X)
    summed = layers(lambda p, x: x @ (p["q"] + p["k"]), params, X)
    assert summed.weights.tolist() == [64] and summed.other_parameters == 64  # both are stored


def test_a_weight_that_is_put_on_a_device_is_the_same():
    apply = lambda p, x: jnp.tanh(x @ jax.device_put(p["w"])) @ p["w"]
    assert layers(apply, SQUARE, X).macs.tolist() == [128]
