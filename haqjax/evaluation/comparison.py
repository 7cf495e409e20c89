"""Comparison of the float network with the quantised one: answers, and signal-to-noise ratio of every layer."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from haqjax.data import Split
from haqjax.evaluation.batches import first_batch, split_into_batches, suggest_batch_size
from haqjax.quantizers.integer_layers import hidden_zero, hook_with, prepare_layers
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, Hook, map_weights, with_records
from haqjax.tracing.jaxpr import shape_of
from haqjax.tracing.rounded_products import rounds_products
from haqjax.types import Ranges

TOP = 5  # an answer is among the best so many


class Comparison(NamedTuple):
    """Counts over the images of a split, float against quantised."""

    images: int
    right: Int[np.ndarray, "2 2"]  # images by [float right, quantised right], 0 no, 1 yes
    right_of_5: Int[np.ndarray, "2"]  # images whose label is among the best five answers: float, quantised
    confusion: Int[np.ndarray, "C C"]  # images by [answer of the float network, of the quantised one]
    noise: Float[np.ndarray, "L"]  # signal-to-noise ratio of each layer's output, dB; inf where nothing changed

    @property
    def top_1(self) -> tuple[float, float]:
        """Fraction of right answers in 0..1: float, quantised."""
        return float(self.right[1].sum() / self.images), float(self.right[:, 1].sum() / self.images)

    @property
    def top_5(self) -> tuple[float, float]:
        """Fraction of images whose label is among the best five answers: float, quantised."""
        return float(self.right_of_5[0] / self.images), float(self.right_of_5[1] / self.images)

    @property
    def agreement(self) -> float:
        """Fraction of images on which the two give the same answer."""
        return float(np.trace(self.confusion) / self.images)


class _Sums(NamedTuple):
    """Sums over images."""

    right: Int[Array, "2 2"]
    right_of_5: Int[Array, "2"]
    confusion: Int[Array, "C C"]
    signal: Float[Array, "L"]
    noise: Float[Array, "L"]


def compare(
    apply: Apply,
    params: PyTree,
    split: Split,
    policy: Int[Array, "L 2"],
    ranges: Ranges,
    *,
    tuned: PyTree | None = None,
    batch_size: int | None = None,
) -> Comparison:
    """Runs the float and the quantised network on the same images.

    Args:
      apply: pure function `apply(params, images)` with logits [B, classes].
      params: of the float network.
      split: at least one image.
      policy, ranges: as for `haqjax.quantize`.
      tuned: parameters of the quantised network, where they are others.
      batch_size: images at a time; None picks what suits the device.

    Returns:
      Counts of answers, and for each layer `10 log10(sum y^2 / sum (y_q - y)^2)` over its outputs:
      of the noise that has gathered up to there, not of what the layer adds.

    Raises:
      ValueError: the split is empty.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> found = compare(apply, params, split, jnp.array([[8, 8]]), calibrate(apply, params, [split.images]))
    >>> found.top_1, found.agreement, found.noise.tolist()
    ((0.75, 0.75), 1.0, [inf])
    """
    if not len(split):
        raise ValueError("cannot compare on no images")
    size = batch_size or suggest_batch_size(split.pixels)
    images, labels = split_into_batches(split, size)
    found = _run(apply, params, params if tuned is None else tuned, images, labels, jnp.asarray(policy), ranges)
    sums = jax.tree.map(np.asarray, found)
    with np.errstate(divide="ignore"):
        noise = 10 * np.log10(sums.signal.astype(float) / sums.noise)
    return Comparison(len(split), sums.right, sums.right_of_5, sums.confusion, noise)


@functools.partial(jax.jit, static_argnums=0)
def _run(
    apply: Apply, params: PyTree, tuned: PyTree, images: Array, labels: Array, policy: Array, ranges: Ranges
) -> _Sums:
    zero = hidden_zero(ranges)
    prepared = prepare_layers(apply, tuned, first_batch(images), policy, ranges)

    uses = map_weights(lambda layer, weight: layer, apply, params, first_batch(images), each_use=True)
    layer_of = jnp.array([use.index for use in uses])

    def record(hook: Hook) -> Callable[..., tuple[Array, Array]]:
        def recorded(*layer: Any) -> tuple[Array, Array]:
            y = hook(*layer)
            return y, y

        return recorded

    def energies(outputs: Sequence[Array], there: Bool[Array, "B"]) -> Float[Array, "L"]:
        found = [
            _energy(y.reshape(-1, *shape_of(use.equation.outvars[0])), there)
            for use, y in zip(uses, outputs, strict=True)
        ]
        return jnp.zeros(len(prepared.signed)).at[layer_of].add(jnp.stack(found))

    def count(batch: tuple[Array, Array]) -> _Sums:
        x, truth = batch
        logits, outputs = with_records(apply, record(use_cpu_kernels))(params, x)
        quantised = record(hook_with(prepared.operands(), zero))
        other, others = with_records(apply, quantised, rounds_products(zero))(tuned, x)
        there = truth >= 0  # blank images complete the last batch
        noise = energies([a - b for a, b in zip(outputs, others, strict=True)], there)
        return _Sums(*_count_answers(logits, other, truth), energies(outputs, there), noise)

    return jax.tree.map(lambda leaf: leaf.sum(0), jax.lax.map(count, (images, labels)))


def _energy(y: Array, there: Bool[Array, "B"]) -> Float[Array, ""]:
    """Sums squares of the images that are there; the axis of turns comes first, which may go over the images."""
    axis = 0 if y.ndim < 2 or (y.shape[1] != len(there) and y.shape[0] == len(there)) else 1
    return jnp.sum(jnp.square(y) * there.reshape([-1 if at == axis else 1 for at in range(y.ndim)]))


def _count_answers(logits: Array, other: Array, truth: Int[Array, "B"]) -> tuple[Array, Array, Array]:
    there, classes = truth >= 0, logits.shape[-1]
    answers = [logits.argmax(-1), other.argmax(-1)]
    finite = [jnp.isfinite(logits).all(-1), jnp.isfinite(other).all(-1)]
    good = [((a == truth) & f).astype(jnp.int32) for a, f in zip(answers, finite, strict=True)]
    right = jnp.zeros((2, 2), jnp.int32).at[good[0], good[1]].add(there)
    confusion = jnp.zeros((classes, classes), jnp.int32).at[answers[0], answers[1]].add(there)
    best = [jax.lax.top_k(found, min(TOP, classes))[1] for found in (logits, other)]
    among = [((b == truth[:, None]).any(-1) & f).sum() for b, f in zip(best, finite, strict=True)]
    return right, jnp.stack(among).astype(jnp.int32), confusion


def describe_comparison(found: Comparison, names: Sequence[str], worst: int = 5) -> list[str]:
    """Describes a comparison in a few lines, with so many of the layers that are worst off."""
    order = np.argsort(found.noise)[:worst]
    layers = ", ".join(f"{names[i]} {found.noise[i]:.1f} dB" for i in order)
    (one, two), (five, six) = found.top_1, found.top_5
    return [
        f"Float and quantised: top-1 {100 * one:.1f} and {100 * two:.1f} %, "
        f"top-5 {100 * five:.1f} and {100 * six:.1f} %.",
        f"The two agree on {100 * found.agreement:.1f} % of {found.images} images; {found.right[1, 0]} are wrong only "
        f"when quantised, {found.right[0, 1]} only in float.",
        f"Least signal-to-noise of outputs: {layers}.",
    ]


def comparison_to_json(found: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """Converts a comparison to a JSON document; of the confusion only where the two differ."""
    changed = np.argwhere(found.confusion * (1 - np.eye(len(found.confusion), dtype=int)))
    return {
        "images": found.images,
        "top_1": dict(zip(("float", "policy"), found.top_1, strict=True)),
        "top_5": dict(zip(("float", "policy"), found.top_5, strict=True)),
        "agreement": found.agreement,
        "right": {
            "both": found.right[1, 1],
            "float": found.right[1, 0],
            "policy": found.right[0, 1],
            "neither": found.right[0, 0],
        },
        "changed_answers": [{"float": a, "policy": b, "images": found.confusion[a, b]} for a, b in changed.tolist()],
        "signal_to_noise_db": dict(zip(names, found.noise.tolist(), strict=True)),
    }
