"""The tuning of arithmetic takes the type that the clock says is fastest, remembers it, and changes no answer."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haqjax
from haqjax.data import Split
from haqjax.evaluation import make_evaluator
from haqjax.evaluation.arithmetic_tuning import tune_arithmetic
from haqjax.quantizers.codebook import make_codebook
from haqjax.tracing.integer_products import FORMS
from references_integer import same_bits

FASTEST = {"float32": 3, "bfloat16": 2, "int8": 1}
SHAPES = {"first": (6, 5), "second": (5, 5), "third": (5, 5), "fourth": (5, 3)}


def apply(params, x):
    x = x.reshape(len(x), -1)
    for name in SHAPES:
        x = jax.nn.relu(x @ params[name])
    return x


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(0)
    params = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
    images = random.normal(size=(7, 1, 6, 1)).astype(np.float32)
    return apply, params, images, haqjax.calibrate(apply, params, [images], rounding="nearest")


def make_clock(plain, by_outputs, asked):
    """Says how long each type takes: on the plain product, and by a layer's width."""

    def seconds(layer, form):
        asked.append((None if layer is None else layer.weight_shape, form))
        return plain[form] if layer is None else by_outputs[layer.weight_shape[1]][form]

    return seconds


def test_each_layer_has_its_fastest_type_and_equal_layers_are_timed_once(world, tmp_path):
    asked = []
    by_outputs = {5: FASTEST, 3: {"float32": 2, "bfloat16": 1, "int8": 3}}
    clock = make_clock(dict(zip(FORMS, (1.0, 0.5, 0.5), strict=True)), by_outputs, asked)
    found = tune_arithmetic(*world, cache=tmp_path, time_product=clock)
    assert [layer.form for layer in found] == ["int8", "int8", "int8", "bfloat16"]
    assert len(asked) == len(set(asked)) == 3 + 3 * 3  # second and third have the same shapes
    again = tune_arithmetic(*world, cache=tmp_path, time_product=lambda layer, form: pytest.fail("timed again"))
    assert again == found
    (path,) = (path for path in tmp_path.glob("arithmetic-tuning/*.json") if "forms" in path.read_text())
    asked.clear()
    for broken in ("", "[]", '{"forms": ["int8"]}', '{"forms": ["int8", "int8", "int8", "int4"]}'):
        path.write_text(broken)
        assert tune_arithmetic(*world, cache=tmp_path, time_product=clock) == found
    assert not [form for shape, form in asked if shape is None]  # the plain product was timed once
    assert json.loads(path.read_text())["forms"] == [layer.form for layer in found]


def test_a_device_without_units_is_not_tried_on_layers(world):
    asked = []
    clock = make_clock(dict(zip(FORMS, (1.0, 2.0, 0.9), strict=True)), {}, asked)
    found = tune_arithmetic(*world, cache=None, time_product=clock)
    assert {layer.form for layer in found} == {"float32"} and all(shape is None for shape, _ in asked)


def test_the_clock_decides_and_answers_stay(world):
    apply, params, images, ranges = world
    split = Split(images, np.zeros(len(images), np.int32))
    policies = jnp.asarray(np.random.default_rng(1).integers(2, 9, (3, len(SHAPES), 2)))
    measured = tune_arithmetic(*world, cache=None)
    usual = make_evaluator(apply, params, split, ranges)(policies)
    tuned = make_evaluator(apply, params, split, ranges, arithmetic=measured)(policies)
    assert same_bits(usual.loss, tuned.loss) and same_bits(usual.accuracy, tuned.accuracy)


@pytest.mark.parametrize("kind", ["reached", "codebook"])
def test_layers_that_stay_in_floating_point_are_multiplied_so(world, kind):
    """Codebooks have no codes, and an activation that calibration never saw is left as it is."""
    apply, params, images, ranges = world
    reached = np.array([True, False, True, False])
    if kind == "reached":
        ranges = dataclasses.replace(ranges, reached=reached)
    else:
        ranges = dataclasses.replace(ranges, codebook=make_codebook(apply, params, images))
    clock = make_clock(dict(zip(FORMS, (1.0, 0.5, 0.5), strict=True)), {5: FASTEST, 3: FASTEST}, [])
    found = tune_arithmetic(apply, params, images, ranges, cache=None, time_product=clock)
    assert [layer.form == "int8" for layer in found] == (reached.tolist() if kind == "reached" else [False] * 4)
