"""The layer table counts what a network stores and multiplies, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haqjax
from haqjax.policies.feasibility import check_reachable
from haqjax.tracing.batch_axes import count_examples
from haqjax.tracing.layer_table import layers


@pytest.fixture(autouse=True)
def rank_promotion():
    """Networks of others add biases to batches as they are."""
    with jax.numpy_rank_promotion("allow"):
        yield


def draw(*sizes, seed=0, dtype="float32"):
    random = np.random.default_rng(seed)
    values = random.normal(size=sizes)
    return jnp.asarray(values + 1j * random.normal(size=sizes) if dtype == "complex64" else values, dtype)


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def quantised_error(apply, params, x, bits=8, **axes):
    """Relative error of the outputs at these bits."""
    ranges = haqjax.calibrate(apply, params, [x], rounding="nearest", **axes)
    y = apply(params, x)
    q = haqjax.quantize(apply)(params, x, jnp.full((len(ranges.clip), 2), bits), ranges)
    return float(jnp.linalg.norm(q - y) / jnp.linalg.norm(y))


def test_what_no_output_needs_is_no_layer():
    params = {"body": shape(8, 8), "policy": shape(8, 4), "value": shape(8, 512), "bias": shape(512)}

    def both(params, x):
        hidden = x @ params["body"]
        return hidden @ params["policy"], hidden @ params["value"] + params["bias"]

    table = layers(lambda params, x: both(params, x)[0], params, shape(3, 8))
    assert table.names == ("body", "policy") and table.other_parameters == 0
    inside = jax.jit(jax.checkpoint(both))
    assert layers(lambda params, x: inside(params, x)[0], params, shape(3, 8)).names == ("body", "policy")
    assert layers(both, params, shape(3, 8)).other_parameters == 512


def test_a_dead_layer_has_no_bits_when_the_network_runs():
    params = {"a": draw(8, 8), "dead": draw(8, 8, seed=1)}

    def apply(params, x):
        jnp.tanh(x @ params["dead"])
        return x @ params["a"]

    assert quantised_error(apply, params, draw(16, 8)) < 0.03


def attend(params, x):
    q, k, v = (x @ params[name] for name in "qkv")
    return jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v @ params["o"]


@pytest.mark.parametrize("batch", [1, 3])
def test_products_of_two_activations_have_a_price(batch):
    params = {name: shape(32, 32) for name in "qkvo"}
    table = layers(attend, params, shape(batch, 64, 32))
    assert table.products.macs.tolist() == [64 * 64 * 32] * 2
    assert table.products.dense.all() and table.macs.sum() == 4 * 64 * 32 * 32
    costs = haqjax.cost_table(haqjax.machine("edge"), table)
    alone = haqjax.cost_table(haqjax.machine("edge"), table.products)
    assert costs.fixed.latency == alone.latency[:, 7, 7].sum() > 0
    assert costs.fixed.energy == alone.energy[:, 7, 7].sum() > 0
    assert costs.fixed.bops == 64 * table.products.macs.sum()
    total = haqjax.total_cost(costs, np.full((4, 2), 8))
    assert float(total.bops) == 64 * (table.macs.sum() + table.products.macs.sum())


@pytest.mark.parametrize("machine", ["edge", "cloud", "bitfusion", "roofline", "systolic"])
def test_every_machine_prices_heads_of_attention(machine):
    def apply(params, x):
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, params[name]) for name in "qkv")
        scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        return jnp.einsum("bhts,bshk->bthk", scores, v)

    table = layers(apply, {name: shape(32, 4, 8) for name in "qkv"}, shape(2, 16, 32))
    assert table.products.macs.tolist() == [4 * 16 * 16 * 8] * 2 and table.products.groups.tolist() == [4, 4]
    assert haqjax.cost_table(haqjax.machine(machine), table).fixed.latency > 0


def test_products_in_loops_count_by_turn_and_complex_ones_fourfold():
    def chunked(params, x):
        y = x @ params["w"]
        return jax.lax.scan(lambda total, part: (total + (part @ part.swapaxes(-1, -2)).sum(), None), 0.0, y)[0]

    assert layers(chunked, {"w": shape(8, 8)}, shape(6, 4, 8), batch_axis=None).products.macs.sum() == 6 * 4 * 4 * 8

    def spectral(params, x):
        frequencies = jnp.fft.rfft(x @ params["lift"], axis=1)
        return jnp.fft.irfft(jnp.einsum("bkc,cdk->bkd", frequencies, params["spec"]), axis=1)

    params = {"lift": draw(1, 8), "spec": draw(8, 8, 9, dtype="complex64")}
    x = draw(2, 16, 1)
    table = layers(spectral, params, x)
    assert table.names == ("lift",) and table.other_parameters == 2 * 8 * 8 * 9
    assert table.products.macs.tolist() == [4 * 9 * 8 * 8]
    assert quantised_error(spectral, params, x) < 0.05


def test_a_learned_query_is_stored_as_its_factors():
    params = {"probe": (2, 8), "wq": (8, 8), "wk": (8, 8), "wv": (8, 8)}
    params = {name: draw(*size, seed=seed) for seed, (name, size) in enumerate(params.items())}

    def apply(params, x):
        q, k, v = params["probe"] @ params["wq"], x @ params["wk"], x @ params["wv"]
        return jax.nn.softmax(jnp.einsum("qd,btd->bqt", q, k)) @ v

    x = draw(3, 5, 8)
    table = layers(apply, params, x)
    assert table.names == ("wk", "wv") and table.other_parameters == 16 + 64
    assert table.products.macs.tolist() == [2 * 5 * 8] * 2
    assert quantised_error(apply, params, x) < 0.1


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_a_copy_of_a_parameter_for_each_example_is_no_weight(batch):
    def apply(params, x):
        probe = jnp.broadcast_to(params["probe"], (len(x), 2, 8))
        return jnp.einsum("bqd,btd->bqt", probe, x @ params["wk"])

    table = layers(apply, {"probe": shape(2, 8), "wk": shape(8, 8)}, shape(batch, 5, 8))
    assert table.names == ("wk",) and table.products.macs.tolist() == [2 * 5 * 8]

    def pool(params, x):
        """The head of a vision transformer that pools by attention: tiled queries, heads and biases."""
        probe = jnp.tile(params["probe"], (len(x), 1, 1))
        q, k, v = (
            jnp.einsum("btd,dhk->bthk", y, params[name]) + params[f"{name}_bias"]
            for name, y in (("q", probe), ("k", x), ("v", x))
        )
        return jnp.einsum("bhqt,bthk->bqhk", jax.nn.softmax(jnp.einsum("bqhk,bthk->bhqt", q, k)), v)

    params = {"probe": shape(1, 1, 8)} | {name: shape(8, 2, 4) for name in "qkv"}
    params |= {f"{name}_bias": shape(2, 4) for name in "qkv"}
    table = layers(pool, params, shape(batch, 5, 8))
    assert table.names == ("k", "v") and table.products.macs.sum() == 2 * 5 * 8
    assert table.weights.sum() + table.other_parameters == 8 + 3 * 64 + 3 * 8


def test_one_expert_is_a_layer():
    def apply(params, x):
        return jnp.einsum("bgi,gio->bgo", (x @ params["a"])[:, None], params["w"])

    table = layers(apply, {"a": shape(8, 8), "w": shape(1, 8, 8)}, shape(3, 8))
    assert table.names == ("a", "w") and table.macs.tolist() == [64, 64] and table.products is None


def test_what_a_layer_leaves_of_a_parameter_is_counted():
    apply = lambda params, x: x @ params["f"][:8] + params["f"][8]
    assert layers(apply, {"f": shape(9, 8)}, shape(3, 8)).other_parameters == 8


@pytest.mark.parametrize("batch", [1, 2])
def test_a_layer_on_what_all_examples_share_runs_once(batch):
    def apply(params, x):
        return x["image"] @ params["w"] * (jnp.sin(x["time"] * jnp.ones((1, 8))) @ params["e"])

    x = {"image": shape(batch, 8), "time": shape()}
    table = layers(apply, {"w": shape(8, 8), "e": shape(8, 8)}, x, batch_axis={"image": 0, "time": None})
    assert table.names == ("w", "e") and table.macs.tolist() == [64, 64]


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_products_cost_the_same_for_any_batch(batch):
    def by_row(params, x):
        return jax.lax.map(lambda row: jax.nn.softmax(row @ row.T) @ row, x @ params["w"])

    def learned(params, x):
        return (params["q"] @ params["wq"]) @ (x @ params["wk"]).swapaxes(1, 2)

    x = shape(batch, 5, 8)
    assert layers(by_row, {"w": shape(8, 8)}, x).products.macs.sum() == 2 * 5 * 5 * 8
    params = {"q": shape(2, 8), "wq": shape(8, 8), "wk": shape(8, 8)}
    assert layers(learned, params, x).products.macs.sum() == 2 * 5 * 8


@pytest.mark.parametrize(
    "weight",
    [
        lambda p: p["w"] + p["a"] @ p["b"],  # LoRA
        lambda p: p["w"] / (p["u"] @ p["w"] @ p["u"]),  # spectral normalisation
        lambda p: p["w"] * jnp.exp(p["a"] @ p["b"]),
    ],
)
def test_a_parameter_with_a_product_in_it_is_a_weight(weight):
    params = {"w": shape(8, 8), "a": shape(8, 2), "b": shape(2, 8), "u": shape(8)}
    table = layers(lambda params, x: x @ weight(params), params, shape(3, 8))
    assert table.names == ("w",) and table.products is None


def test_a_product_of_factors_is_no_weight_but_has_a_price():
    def apply(params, x):
        return (x @ params["first"]) @ (params["a"] @ params["b"] + params["bias"])

    params = {"first": shape(8, 8), "a": shape(8, 2), "b": shape(2, 8), "bias": shape(8)}
    table = layers(apply, params, shape(3, 8))
    assert table.names == ("first",) and table.products.macs.tolist() == [64]


def test_a_product_without_a_contraction_is_element_wise():
    def apply(params, x):
        return jnp.exp(jnp.einsum("bld,dn->bldn", x @ params["w"], -params["A"])).sum(-1)

    table = layers(apply, {"w": shape(8, 8), "A": shape(8, 16)}, shape(2, 5, 8))
    assert table.names == ("w",) and table.products is None and table.other_parameters == 128


@pytest.mark.parametrize(
    "kernel, stride, padding, macs",
    [
        (4, 2, "SAME", 64 * 16),
        (2, 2, "VALID", 64 * 4),
        (3, 2, "SAME", 64 * 9),
        (4, 2, "VALID", 64 * 16),
        (3, 1, "SAME", 64 * 9),
    ],
)
def test_transposed_convolutions_count_products_that_meet_data(kernel, stride, padding, macs):
    def apply(params, x):
        return jax.lax.conv_transpose(x, params["w"], (stride, stride), padding)

    table = layers(apply, {"w": shape(kernel, kernel, 8, 4)}, shape(2, 8, 8, 8))
    assert table.macs.tolist() == [macs * 32] and table.weights.tolist() == [kernel * kernel * 32]
    assert table.upsampling.tolist() == [[stride, stride]]


def test_a_transposed_convolution_costs_what_its_subpixel_form_costs():
    upsample = lambda params, x: jax.lax.conv_transpose(x, params["w"], (2, 2), "SAME")
    subpixel = lambda params, x: jax.lax.conv_general_dilated(
        x, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    one = layers(upsample, {"w": shape(4, 4, 8, 8)}, shape(1, 8, 8, 8))
    other = layers(subpixel, {"w": shape(2, 2, 8, 32)}, shape(1, 8, 8, 8))
    for name in ("edge", "bitfusion", "systolic"):
        costs = [haqjax.cost_table(haqjax.machine(name), table) for table in (one, other)]
        np.testing.assert_array_equal(costs[0].latency, costs[1].latency)
        np.testing.assert_array_equal(costs[0].size, costs[1].size)
        np.testing.assert_array_equal(costs[0].bops, costs[1].bops)


def test_leaves_without_examples_and_other_axes():
    apply = lambda params, x: x["image"] @ params["w"] * x["time"] + x["anchors"].sum()
    params, x = {"w": shape(8, 4)}, {"anchors": shape(7, 4), "image": shape(14, 8), "time": shape()}
    with pytest.raises(ValueError, match="'anchors' 7, 'image' 14; say which axis .* batch_axis="):
        layers(apply, params, x)
    axes = {"anchors": None, "image": 0, "time": None}
    assert layers(apply, params, x, batch_axis=axes).macs.tolist() == [32]
    assert count_examples(x, axes) == 14
    assert layers(apply, params, x | {"anchors": shape(14, 4)}).macs.tolist() == [32]
    with pytest.raises(ValueError, match="batch_axis of 'time' is 0, but its shape is"):
        layers(apply, params, x, batch_axis=axes | {"time": 0})
    with pytest.raises(ValueError, match="batch_axis does not fit its tree"):
        layers(apply, params, x, batch_axis={"image": 0})
    with pytest.raises(ValueError, match="no examples"):
        layers(apply, params, x | {"image": shape(0, 8)}, batch_axis=axes)


def test_time_first_and_one_example():
    apply = lambda params, x: x @ params["w"]
    params = {"w": draw(8, 8)}
    assert layers(apply, params, shape(6, 3, 8), batch_axis=1).macs.tolist() == [6 * 64]
    assert layers(apply, params, shape(6, 3, 8), batch_axis=-2).macs.tolist() == [6 * 64]
    assert layers(apply, params, shape(6, 8), batch_axis=None).macs.tolist() == [6 * 64]
    x = draw(6, 3, 8)
    assert quantised_error(apply, params, x, batch_axis=1) < 0.03
    assert quantised_error(apply, params, x[:, 0], batch_axis=None) < 0.03


def test_state_is_told_and_what_is_never_trained_is_not_counted():
    keras = ([jnp.ones((8, 8)), jnp.ones(8), jnp.ones(8)], [jnp.zeros(8), jnp.ones(8)])

    def normalise(params, x):
        (kernel, scale, shift), (mean, variance) = params
        return (x @ kernel - mean) / jnp.sqrt(variance) * scale + shift

    assert layers(normalise, keras, shape(1, 8)).other_parameters == 32
    tree = ([False] * 3, [True] * 2)
    for state in (tree, lambda path: path[0].idx == 1):
        assert layers(normalise, keras, shape(1, 8), is_state=state).other_parameters == 16
    assert layers(normalise, keras, shape(1, 8), is_state=(False, True)).other_parameters == 16
    with pytest.raises(ValueError, match="is_state does not fit its tree"):
        layers(normalise, keras, shape(1, 8), is_state=[True])

    params = {
        "w": jnp.ones((8, 8)),
        "rng": {"count": jnp.uint32(0), "key": jax.random.key(0)},
        "mask": jnp.ones(100, jnp.int32),
    }
    drop = lambda params, x: x @ params["w"] * jax.random.bernoulli(params["rng"]["key"], 0.5, (8,)) + params["mask"][0]
    assert layers(drop, params, shape(1, 8)).other_parameters == 0


def test_lists_get_names():
    apply = lambda params, x: (x @ params[0] + params[1]) @ params[2]
    params = [shape(8, 8), shape(8), shape(8, 2)]
    assert layers(apply, params, shape(1, 8)).names == ("0", "2")
    assert layers(apply, params, shape(1, 8), names=["body", "bias", "head"]).names == ("body", "head")
    assert layers(apply, params, shape(1, 8), names=lambda path: f"dense{path[0]}").names == ("dense0", "dense2")
    with pytest.raises(ValueError, match="names does not fit its tree"):
        layers(apply, params, shape(1, 8), names=["body"])
    with pytest.raises(ValueError, match="names gives 'a': expected a string of its own"):
        layers(apply, params, shape(1, 8), names=["a", "b", "a"])


def test_leaves_that_are_no_arrays_are_left_alone():
    params = {"w": draw(8, 4), "activation": jnp.tanh, "name": "mlp", "b": jnp.zeros(4)}
    apply = lambda params, x: params["activation"](x @ params["w"] + params["b"])
    x = draw(16, 8)
    table = layers(apply, params, x)
    assert table.names == ("w",) and table.other_parameters == 4
    assert quantised_error(apply, params, x) < 0.03
    labels = np.asarray(apply(params, x).argmax(-1), np.int32)
    ranges = haqjax.calibrate(apply, params, [x], method="max")
    evaluator = haqjax.make_evaluator(apply, params, haqjax.Split(np.asarray(x), labels), ranges)
    assert evaluator(jnp.full((1, 1, 2), 32)).accuracy.tolist() == [1.0]
    again = haqjax.make_evaluator(apply, params, haqjax.Split(np.asarray(x), labels), ranges)
    assert again.function is evaluator.function
    tree = {"w": False, "activation": False, "name": False, "b": True}
    assert layers(apply, params, x, is_state=tree).other_parameters == 0


def pinned(apply, params, x):
    table = layers(apply, params, x)
    limits = haqjax.make_bounds(table)
    low, high = np.asarray(limits.low), np.asarray(limits.high)
    return [name for name, fixed in zip(table.names, (low == high).all(axis=1), strict=True) if fixed]


def test_layers_that_read_the_input_or_write_an_output_keep_eight_bits():
    params = {name: shape(8, 8) for name in ("left", "right", "a", "b", "class", "box")}

    def two_ends(params, x):
        y = jax.nn.relu(x["one"] @ params["left"]) + x["two"] @ params["right"]
        y = y + jnp.tanh(y @ params["a"]) @ params["b"]
        return {"class": y @ params["class"], "box": jax.nn.softmax(y @ params["box"])}

    x = {"one": shape(2, 8), "two": shape(2, 8)}
    assert pinned(two_ends, params, x) == ["left", "right", "class", "box"]

    def residuals(params, x):
        y = x @ params["left"]
        for name in ("a", "b"):
            y = y + jnp.tanh(y @ params[name])
        return y

    assert pinned(residuals, params, shape(2, 8)) == ["left", "b"]


def test_a_lookup_reads_the_input_in_place_of_the_layers_behind_it():
    params = {"table": shape(16, 8), "a": shape(8, 8), "b": shape(8, 8), "head": shape(8, 4)}
    apply = lambda params, x: jnp.tanh(params["table"][x] @ params["a"]) @ params["b"] @ params["head"]
    assert pinned(apply, params, shape(2, 5, dtype="int32")) == ["table", "head"]


def test_a_budget_that_cannot_be_met_names_the_pinned_layers():
    apply = lambda params, x: x @ params["a"] @ params["b"] @ params["c"]
    table = layers(apply, {name: shape(8, 8) for name in "abc"}, shape(1, 8))
    costs = haqjax.cost_table(haqjax.machine("edge"), table)
    limits = haqjax.make_bounds(table)
    with pytest.raises(ValueError, match="raise the budget or allow fewer bits; a, c may not change"):
        check_reachable(costs, limits, haqjax.budget(costs, latency=0.01), table.names)
