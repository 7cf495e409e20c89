"""Tuning of arithmetic: in which type each layer's products are fastest, measured once for a kind of device."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from haqjax.evaluation.tuning_cache import cache_path, least_seconds, recall, remember
from haqjax.quantizers.arithmetic import choose_arithmetic, set_forms
from haqjax.tracing.hooks import Apply, map_weights
from haqjax.tracing.integer_products import FORMS, Arithmetic, Form, count_summed, multiply, ready_weights
from haqjax.tracing.jaxpr import Layer, shape_of
from haqjax.types import Ranges

VERSION = 2  # of the file: raise it when the products change
FOLDER = "arithmetic-tuning"  # of the cache
REPEATS = 15  # timings of each form, of which the least counts: with 5 a busy moment chose float32 for all
ROWS, SUMMED, OUTPUTS = 2048, 1152, 128  # of a product that tells which types a device is fast at
LONG = 1e9  # seconds of what a device lacks
MOST = 0.9  # of a network's work is done by the layers that are tried; the others are left in float32
WORTHWHILE = 0.7  # of the time in float32; types that do not get there on the plain product are not tried on layers

Measure = Callable[[Layer | None, int, Sequence[Form]], dict[Form, float]]  # (layer, parts, forms) -> seconds


def tune_arithmetic(
    apply: Apply,
    params: PyTree,
    x: PyTree,
    ranges: Ranges,
    *,
    cache: str | Path | None,
    time_product: Callable[..., float] | None = None,
) -> tuple[Arithmetic, ...]:
    """Finds the type that multiplies each layer's codes fastest on this device, and chooses its arithmetic.

    The answers of a network do not depend on it. A type is tried on the layers where it is faster on a plain product;
    one that gives other numbers than float32, or fails, is left out. Layers of the same shapes are timed once, and a
    file in the cache remembers what was found for a kind of device, network and micro-batch.

    Args:
      apply, params, ranges: as for `haqjax.evaluation.make_evaluator`.
      x: a micro-batch; only shapes are read.
      cache: folder, made where it is not there; None remembers nothing.
      time_product: `(layer, form) -> seconds`, with None for the plain product; None measures.

    Returns:
      One entry a layer, for `haqjax.evaluation.make_evaluator`.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params, x = lambda params, x: x @ params["w"], {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
    >>> seconds = lambda layer, form: 1.0 if form == "int8" else 2.0
    >>> tune_arithmetic(apply, params, x, calibrate(apply, params, [x]), cache=None, time_product=seconds)
    (Arithmetic(form='int8', parts=1),)
    """
    layers = map_weights(lambda layer, weight: layer, apply, params, x)
    known = choose_arithmetic(apply, params, x, ranges)
    identity = (VERSION, [_describe(layer) for layer in layers], [one.parts for one in known])
    path = cache_path(cache, FOLDER, identity)
    forms = recall(path).get("forms")
    if not isinstance(forms, list) or len(forms) != len(layers) or not set(forms) <= set(FORMS):
        measure = _measure if time_product is None else _ask(time_product)
        forms = _find_forms(layers, known, _time_plain(cache, measure), measure)
        remember(path, {"forms": forms})
    return set_forms(known, forms, ranges)


def _time_plain(cache: str | Path | None, measure: Measure) -> Mapping[Form, float]:
    """Times the plain product in every type, once for a kind of device."""
    path = cache_path(cache, FOLDER, VERSION)
    known = recall(path).get("seconds")
    if isinstance(known, dict) and set(known) == set(FORMS) and all(isinstance(s, float) for s in known.values()):
        return known
    seconds = measure(None, 1, FORMS)
    finite = {form: seconds[form] if math.isfinite(seconds[form]) else LONG for form in FORMS}
    remember(path, {"seconds": finite})
    return finite


def _find_forms(
    layers: Sequence[Layer], arithmetic: Sequence[Arithmetic], plain: Mapping[Form, float], measure: Measure
) -> list[Form]:
    """Times the layers that do most of the work in the types that are worth a trial; those of equal shapes once."""
    worth = [form for form in FORMS if form == "float32" or plain[form] < WORTHWHILE * plain["float32"]]
    found, busy = dict[str, Form](), _busy(layers)
    for layer, one in zip(layers, arithmetic, strict=True):
        name = _describe(layer)
        if name not in found:
            tried = len(worth) > 1 and name in busy and not layer.lookup
            times: dict[Form, float] = measure(layer, one.parts, worth) if tried else {"float32": 0.0}
            found[name] = min(times, key=times.__getitem__)
    return [found[_describe(layer)] for layer in layers]


def _busy(layers: Sequence[Layer]) -> set[str]:
    """Finds the fewest kinds of layers that do `MOST` of the multiply-accumulates."""
    work: dict[str, float] = {}
    for layer in layers:
        macs = 0 if layer.lookup else math.prod(shape_of(layer.equation.outvars[0])) * count_summed(layer)
        work[_describe(layer)] = work.get(_describe(layer), 0) + macs
    names = sorted(work, key=lambda name: -work[name])
    before = np.cumsum([0, *(work[name] for name in names[:-1])])
    return {name for name, done in zip(names, before, strict=True) if done < MOST * sum(work.values())}


def _ask(time_product: Callable[..., float]) -> Measure:
    return lambda layer, parts, forms: {form: time_product(layer, form) for form in forms}


def _measure(layer: Layer | None, parts: int, forms: Sequence[Form]) -> dict[Form, float]:
    """Times a layer from float activations to float sums; infinite where it fails, or gives other sums than float32."""
    layer = _plain_product() if layer is None else layer
    keys = jax.random.split(jax.random.key(0))
    activation = jax.random.randint(keys[0], layer.activation_shape, 0, 128).astype(jnp.float32)
    weight = jax.random.randint(keys[1], layer.weight_shape, -3, 4).astype(jnp.float32)
    expected = _run(layer, Arithmetic("float32", parts))(activation, weight)

    def seconds(form: Form) -> float:
        run = _run(layer, Arithmetic(form, parts))
        try:
            alike = bool((run(activation, weight) == expected).all())
            return least_seconds(lambda: run(activation, weight), REPEATS) if alike else float("inf")
        except jax.errors.JaxRuntimeError:  # a type that this device lacks
            return float("inf")

    return {form: seconds(form) for form in forms}


def _run(layer: Layer, arithmetic: Arithmetic) -> Callable[[Array, Array], Array]:
    @jax.jit
    def run(activation: Array, weight: Array) -> Array:
        unsigned, whole = jnp.array(False), jnp.array(True)
        weights = ready_weights(layer, weight, unsigned, arithmetic.form)
        return multiply(layer, jnp.round(activation * 0.5), weights, arithmetic, unsigned, whole)

    return run


@functools.cache
def _plain_product() -> Layer:
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((SUMMED, OUTPUTS), (ROWS, SUMMED))]
    return map_weights(lambda layer, weight: layer, _multiply_matrices, {"w": jnp.zeros(shapes[0].shape)}, shapes[1])[0]


def _multiply_matrices(params: PyTree, x: Array) -> Array:
    """Multiplies two matrices: the network of one layer that types are compared on."""
    return x @ params["w"]


def _describe(layer: Layer) -> str:
    """Describes what the time of a layer depends on."""
    params = sorted((name, str(value)) for name, value in layer.equation.params.items())
    return repr((layer.weight_at, layer.activation_shape, layer.weight_shape, params))
