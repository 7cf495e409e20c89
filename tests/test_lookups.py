"""Lookups in learned tables, such as embeddings, are rows: bits, bytes moved, and no products."""

import dataclasses

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haqjax
from haqjax.data import Split
from haqjax.evaluation import estimate_gauss_newton_sensitivity, tune_arithmetic
from haqjax.hardware import find_lifetimes
from haqjax.policies.bounds import make_bounds
from haqjax.policies.cost import exact_cost, peak_memory
from haqjax.quantizers.codebook import make_codebook
from haqjax.quantizers.fractional import quantize_fractionally
from haqjax.quantizers.trainable import begin, quantize_learned
from haqjax.tracing.hooks import map_weights
from haqjax.tracing.layer_table import layers


def draw(*sizes, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=sizes), jnp.float32)


TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, 50, (4, 6)), jnp.int32)
PARAMS = {"table": draw(50, 8), "w": draw(8, 8, seed=1), "head": draw(8, 3, seed=2)}


def bag(params, tokens):
    return jax.nn.relu(params["table"][tokens] @ params["w"]).mean(1) @ params["head"]


def tied(params, tokens):
    return jnp.tanh(params["table"][tokens] @ params["w"]) @ params["table"].T


def snap_rows(table, bits):
    """Rounds each entry to symmetric levels of its own largest magnitude."""
    step = np.abs(table).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.round(table / step) * step


def test_a_lookup_is_a_row_without_products():
    table = layers(bag, PARAMS, TOKENS)
    assert table.names == ("table", "w", "head") and table.lookup.tolist() == [True, False, False]
    assert table.weights.tolist() == [400, 64, 24] and table.macs.tolist() == [0, 64 * 6, 24]
    assert table.other_parameters == 0 and table.outer.tolist() == [True, False, True]
    assert table.out_size[0].tolist() == [6, 1] and (table.in_channels[0], table.out_channels[0]) == (50, 8)


@pytest.mark.parametrize("name", ["edge", "cloud", "bitfusion", "roofline", "systolic"])
def test_machines_move_the_entries_that_are_read(name):
    machine = haqjax.machine(name)
    cost = haqjax.cost_table(machine, layers(bag, PARAMS, TOKENS))
    port = machine.spec.port_bits if machine.model == "bismo" else machine.spec.dram_bits
    bits = np.arange(1, 9)
    seconds = 6 * 8 * bits * machine.spec.batch / port / machine.spec.clock
    np.testing.assert_allclose(cost.latency[0], np.broadcast_to(seconds[:, None], (8, 8)))
    assert (cost.bops[0] == 0).all() and cost.size[0, 7, 0] == 400 and cost.size[0, 1, 7] == 100
    assert exact_cost(cost, np.full((3, 2), 8))["size"] == 400 + 64 + 24


def test_only_the_weights_of_a_lookup_have_a_choice():
    bounds = make_bounds(layers(bag, PARAMS, TOKENS), pinned={})
    assert bounds.low.tolist() == [[2, 8], [2, 2], [2, 2]] and bounds.high.tolist() == [[8, 8]] * 3
    assert make_bounds(layers(bag, PARAMS, TOKENS)).low.tolist() == [[8, 8], [2, 2], [8, 8]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_entries_are_read_on_their_levels(bits):
    ranges = haqjax.calibrate(bag, PARAMS, [TOKENS], method="max")
    entries = lambda params, tokens: (params["table"][tokens], bag(params, tokens))
    policy = jnp.array([[bits, 8], [32, 32], [32, 32]])
    found, output = jax.jit(haqjax.quantize(entries))(PARAMS, TOKENS, policy, ranges)
    expected = snap_rows(np.asarray(PARAMS["table"]), bits)
    np.testing.assert_allclose(found, expected[TOKENS], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output, bag(PARAMS | {"table": expected}, TOKENS), rtol=1e-4, atol=1e-5)
    learned = quantize_learned(bag)(begin(PARAMS, policy, ranges), TOKENS, policy, ranges)
    np.testing.assert_allclose(learned, output, rtol=1e-5, atol=1e-6)
    fractional = quantize_fractionally(bag)(PARAMS, TOKENS, policy.astype(jnp.float32), ranges)
    np.testing.assert_allclose(fractional, output, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_lookup_passes_straight_through():
    ranges = haqjax.calibrate(bag, PARAMS, [TOKENS], method="max")
    policy = jnp.array([[4, 8], [32, 32], [32, 32]])
    loss = lambda params: haqjax.quantize(bag)(params, TOKENS, policy, ranges).sum()
    rounded = PARAMS | {"table": jnp.asarray(snap_rows(np.asarray(PARAMS["table"]), 4), jnp.float32)}
    expected = jax.grad(lambda params: bag(params, TOKENS).sum())(rounded)["table"]
    inner = np.abs(PARAMS["table"]) < np.abs(PARAMS["table"]).max(1, keepdims=True)  # what does not move the levels
    found = np.asarray(jax.grad(loss)(PARAMS)["table"])[inner]
    np.testing.assert_allclose(found, np.asarray(expected)[inner], rtol=1e-4, atol=1e-5)


def test_a_tied_table_is_one_row_of_the_same_levels():
    table = layers(tied, PARAMS, TOKENS)
    assert table.names == ("table", "w") and table.lookup is None and table.further.lookup.tolist() == [True]
    assert table.macs.tolist() == [6 * 400, 6 * 64] and table.weights.tolist() == [400, 64]
    machine = haqjax.machine("bitfusion")
    together = haqjax.cost_table(machine, table)
    head = layers(lambda p, x: x @ p["table"].T, PARAMS, jnp.ones((4, 6, 8)))
    alone = haqjax.cost_table(machine, head).latency[0]
    moved = haqjax.cost_table(machine, layers(bag, PARAMS, TOKENS)).latency[0]
    np.testing.assert_allclose(together.latency[0], alone + moved)
    np.testing.assert_array_equal(together.size[0], haqjax.cost_table(machine, head).size[0])
    ranges = haqjax.calibrate(tied, PARAMS, [TOKENS], method="max")
    policy = jnp.array([[3, 32], [32, 32]])
    rounded = jnp.asarray(snap_rows(np.asarray(PARAMS["table"]), 3), jnp.float32)
    found = haqjax.quantize(tied)(PARAMS, TOKENS, policy, ranges)
    np.testing.assert_allclose(found, tied(PARAMS | {"table": rounded}, TOKENS), rtol=1e-4, atol=1e-4)


def test_kmeans_values_are_looked_up():
    books = make_codebook(bag, PARAMS, TOKENS)
    ranges = haqjax.calibrate(bag, PARAMS, [TOKENS])
    ranges = dataclasses.replace(ranges, codebook=books, rounding=None)
    entries = lambda params, tokens: (params["table"][tokens], bag(params, tokens))
    found, _ = haqjax.quantize(entries)(PARAMS, TOKENS, jnp.array([[2, 8], [8, 8], [8, 8]]), ranges)
    assert len(np.unique(found)) <= 4


def linen():
    class Net(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, tokens):
            x = flax.linen.Embed(50, 8)(tokens) + flax.linen.Embed(6, 8)(jnp.arange(6)[None])
            return flax.linen.Dense(3)(x.mean(1))

    net = Net()
    params = net.init(jax.random.key(0), TOKENS)
    return net.apply, params


def nnx():
    class Net(flax.nnx.Module):
        def __init__(self, rngs):
            self.embed, self.dense = flax.nnx.Embed(50, 8, rngs=rngs), flax.nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, tokens):
            return self.embed.attend(jnp.tanh(self.dense(self.embed(tokens)) @ jnp.ones((3, 8))))

    graph, params = flax.nnx.split(Net(flax.nnx.Rngs(0)))
    return lambda params, tokens: flax.nnx.merge(graph, params)(tokens), params


def under_vmap():
    return lambda params, tokens: jax.vmap(jax.vmap(lambda t: params["table"][t]))(tokens) @ params["w"], PARAMS


@pytest.mark.parametrize(
    "make, names",
    [(linen, ("Embed_0.embedding", "Dense_0")), (nnx, ("embed.embedding", "dense")), (under_vmap, ("table", "w"))],
)
def test_embeddings_of_libraries_are_rows(make, names):
    apply, params = make()
    table = layers(apply, params, TOKENS)
    assert table.names == names and table.weights[0] == 400
    ranges = haqjax.calibrate(apply, params, [TOKENS])
    whole = apply(params, TOKENS)
    found = haqjax.quantize(apply)(params, TOKENS, jnp.array([[8, 8]]), ranges)  # one row: all alike
    assert np.linalg.norm(found - whole) < 0.04 * np.linalg.norm(whole)


def test_what_is_no_lookup_stays_as_it_is():
    numbers = {"table": jnp.arange(50), "w": PARAMS["w"]}
    table = layers(lambda p, t: jax.nn.one_hot(p["table"][t] % 8, 8) @ p["w"], numbers, TOKENS)
    assert table.names == ("w",)
    single = {"table": draw(50), "w": PARAMS["w"]}  # a number an entry: nothing to have a scale in common
    table = layers(lambda p, t: p["table"][t][..., None] * jnp.ones((1, 1, 8)) @ p["w"], single, TOKENS)
    assert table.names == ("w",) and table.other_parameters == 50
    fixed = layers(lambda p, t: bag(p, t) + p["head"][jnp.array([0])], PARAMS | {"unused": draw(3)}, TOKENS)
    assert "unused" not in fixed.names


def test_indices_are_no_activation_of_few_bits():
    lifetimes = find_lifetimes(bag, PARAMS, TOKENS)
    few, many = (float(peak_memory(lifetimes, np.array([[8, bits], [8, 8], [8, 8]]))) for bits in (2, 8))
    assert few == many


def test_estimates_and_tuning_pass_over_lookups():
    flat = lambda params, x: bag(params, jnp.abs(x.reshape(len(x), -1)).astype(jnp.int32) % 50)
    split = Split(np.asarray(TOKENS, np.float32).reshape(4, 2, 3, 1), np.array([0, 1, 2, 0], np.int32))
    ranges = haqjax.calibrate(flat, PARAMS, [split.images])
    found = estimate_gauss_newton_sensitivity(flat, PARAMS, split, ranges, key=jax.random.key(0))
    assert found.shape == (3, 2, 8) and (found[0, 1] == 0).all() and found[0, 0, 1] > found[0, 0, 6] > 0
    seconds = lambda layer, form: 1.0 if form == "int8" else 2.0
    forms = tune_arithmetic(flat, PARAMS, split.images, ranges, cache=None, time_product=seconds)
    assert [layer.form for layer in forms][:2] == ["float32", "int8"]
    uses = map_weights(lambda layer, weight: layer.lookup, flat, PARAMS, split.images)
    assert uses == (True, False, False)


def test_a_transposed_table_is_looked_up_as_it_lies():
    params = {"w": draw(8, 8), "e": draw(8, 8, seed=4)}
    tokens = TOKENS % 8
    apply = lambda p, t: jnp.tanh(p["e"][t].sum(1)) @ p["w"] + jnp.take(p["w"].T, t, axis=0).sum(1)
    ranges, policy = haqjax.calibrate(apply, params, [tokens]), jnp.full((2, 2), 8)
    found = haqjax.quantize(apply)(params, tokens, policy, ranges)
    fractional = quantize_fractionally(apply)(params, tokens, policy.astype(jnp.float32), ranges)
    np.testing.assert_allclose(fractional, found, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found, apply(params, tokens), rtol=0.1, atol=0.1)
