"""Judging policies that begin like one that is known: what its first layers give is computed once and kept."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array, Float, Int, PyTree

from haqjax.data import Split
from haqjax.evaluation.evaluator import add_up, fill_evenly, in_batches
from haqjax.evaluation.judging import count_answers, operands_under
from haqjax.quantizers.fake_quantize import Operands, hook_with
from haqjax.tracing.hooks import Apply, run_equation, with_hook
from haqjax.types import Evaluation, LayerTable, Ranges

CUTS = 3  # each one compiles the rest of the network again
MOST_BYTES = 2**27  # that the activation a cut is made at may take; what is kept holds skips over the cut, too
FLOAT = 4  # bytes
SHARED, FIRST, REST = range(3)  # what a value depends on


class SplitProgram(NamedTuple):
    """A function `(shared, first, rest) -> output` in two parts."""

    head: Callable[[PyTree, PyTree], list[Array]]  # (shared, first) -> kept
    tail: Callable[[PyTree, list[Array], PyTree], PyTree]  # (shared, kept, rest) -> output


def make_prefix_evaluate(
    apply: Apply,
    params: PyTree,
    split: Split,
    ranges: Ranges,
    base: Int[Array, "L 2"],
    cuts: Sequence[int],
    *,
    batch_size: int | None = None,
) -> jax.tree_util.Partial:
    """Makes a judge that goes on from what a known policy's first layers gave, for policies that begin like it.

    Probes of single layers are such policies: they are the widest policy but for one entry. What the known policy gives
    at each cut is computed here, for all images, and kept in memory. A policy goes on from the last cut before the
    first layer where it differs.

    Args:
      apply, params, split, ranges, batch_size: as for `haqjax.evaluation.make_evaluate`.
      base: the known policy.
      cuts: numbers of first layers whose results are kept, ascending; such as `choose_cuts` gives.

    Returns:
      `judge(policies int32 [N, L, 2]) -> Evaluation`, as `make_evaluate` with losses but for float rounding; traceable.
      One device; under `vmap` nothing is saved.

    Raises:
      ValueError: the split is empty, or the cuts do not ascend within the network.

    >>> from haqjax.quantizers import calibrate
    >>> apply = lambda params, x: jax.nn.relu(x.reshape(len(x), -1) @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.eye(4), "b": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> ranges, base = calibrate(apply, params, [split.images]), jnp.full((2, 2), 8)
    >>> judge = make_prefix_evaluate(apply, params, split, ranges, base, [1])
    >>> judge(jnp.array([[[8, 8], [4, 8]], [[4, 8], [8, 8]]])).accuracy.tolist()
    [0.75, 0.75]
    """
    cuts = tuple(int(cut) for cut in cuts)
    if not len(split):
        raise ValueError("cannot judge a policy on no images")
    if not all(0 < a < b for a, b in itertools.pairwise((*cuts, len(base)))):
        raise ValueError(f"cuts {cuts}: give ascending numbers of layers, from 1 to below {len(base)}")
    images, labels = in_batches(split, fill_evenly(split, batch_size))
    base = jnp.asarray(base, jnp.int32)
    kept = _make_heads(apply, cuts)(params, images, ranges, base)
    return jax.tree_util.Partial(_make_judge(apply, cuts), params, images, labels, ranges, base, kept)


def choose_cuts(layers: LayerTable, images: int, count: int = CUTS) -> tuple[int, ...]:
    """The cuts that spare most of the work, if every layer is probed as often; none where nothing fits the memory.

    A cut is where an activation takes little. What skips over it is kept as well, which can be some times as much.

    Args:
      images: whose activations at each cut are to be kept.

    >>> from haqjax.models import outline
    >>> network = outline("resnet20", classes=10, image_size=32)
    >>> from haqjax.tracing.hooks import layers as read_layers
    >>> choose_cuts(read_layers(network.apply, network.params, network.example), images=1000)
    (6, 11, 16)
    """
    places = np.prod(np.asarray(layers.in_size, np.int64), axis=-1) * np.asarray(layers.in_channels, np.int64)
    there = [cut for cut in range(1, len(layers)) if FLOAT * images * places[cut] <= MOST_BYTES]
    before = _work_before(layers)

    @functools.cache
    def best(cut: int, more: int) -> tuple[float, tuple[int, ...]]:
        """The most that a cut and so many more after it spare, layer by layer, and which those are."""
        options: list[tuple[float, tuple[int, ...]]] = [(float(before[cut] * (len(layers) - cut)), ())]
        for later in there if more else []:
            if later > cut:
                spares, others = best(later, more - 1)
                options.append((float(before[cut] * (later - cut)) + spares, (later, *others)))
        return max(options, key=lambda option: option[0])

    return best(0, min(count, len(there)))[1]


def spared(layers: LayerTable, cuts: Sequence[int]) -> float:
    """The share of the work that cuts spare where every layer is probed as often."""
    last = np.searchsorted(np.asarray(cuts), np.arange(len(layers)), side="right")  # cuts up to each layer
    return float(_work_before(layers)[np.array([0, *cuts])[last]].mean())


def _work_before(layers: LayerTable) -> Float[np.ndarray, "L"]:
    """The share of the work that comes before each layer."""
    work = np.asarray(layers.macs, float)
    return (np.cumsum(work) - work) / work.sum()


def halve(function: Callable, shared: PyTree, first: PyTree, rest: PyTree) -> SplitProgram:
    """Cuts `function(shared, first, rest)` into what does not depend on `rest` and what does.

    What depends on `shared` alone is computed in both parts. The arguments may be shapes.

    >>> halves = halve(lambda w, x, y: jnp.sin(w * x) + y, 2.0, 3.0, 1.0)
    >>> kept = halves.head(2.0, 3.0)
    >>> len(kept), float(halves.tail(2.0, kept, 1.0)) == float(jnp.sin(6.0) + 1)
    (1, True)
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(shared, first, rest)
    jaxpr, sizes = closed.jaxpr, [len(jax.tree.leaves(part)) for part in (shared, first, rest)]
    kind = dict(zip(jaxpr.invars, np.repeat((SHARED, FIRST, REST), sizes).tolist(), strict=True))
    of = lambda atom: SHARED if isinstance(atom, Literal) else kind.get(atom, SHARED)
    parts: tuple[list[JaxprEqn], ...] = ([], [], [])
    for equation in jaxpr.eqns:
        mine = max(map(of, equation.invars), default=SHARED)
        kind.update(dict.fromkeys(equation.outvars, mine))
        parts[mine].append(equation)
    read = [atom for equation in parts[REST] for atom in equation.invars] + jaxpr.outvars
    kept = list(dict.fromkeys(atom for atom in read if of(atom) == FIRST))
    inputs = [jaxpr.invars[at - size : at] for at, size in zip(np.cumsum(sizes), sizes, strict=True)]
    consts = dict(zip(jaxpr.constvars, closed.consts, strict=True))

    def head(shared: PyTree, first: PyTree) -> list[Array]:
        leaves = jax.tree.leaves((shared, first))
        values = consts | dict(zip(inputs[SHARED] + inputs[FIRST], leaves, strict=True))
        return _run(parts[SHARED] + parts[FIRST], values, kept)

    def tail(shared: PyTree, values: list[Array], rest: PyTree) -> PyTree:
        leaves = [*jax.tree.leaves(shared), *values, *jax.tree.leaves(rest)]
        known = consts | dict(zip(inputs[SHARED] + kept + inputs[REST], leaves, strict=True))
        return jax.tree.unflatten(jax.tree.structure(shape), _run(parts[SHARED] + parts[REST], known, jaxpr.outvars))

    return SplitProgram(head, tail)


def _run(equations: Sequence[JaxprEqn], values: dict[Any, Any], wanted: Sequence[Any]) -> list[Any]:
    read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
    for equation in equations:
        values.update(zip(equation.outvars, run_equation(equation, [*map(read, equation.invars)]), strict=True))
    return [read(atom) for atom in wanted]


def _halves(
    apply: Apply, cut: int, params: PyTree, images: Array, ranges: Ranges, operands: tuple[Operands, ...]
) -> SplitProgram:
    """The network on one micro-batch, cut before a layer."""

    def run(params: PyTree, first: tuple[Array, tuple], rest: tuple) -> PyTree:
        return with_hook(apply, hook_with((*first[1], *rest), ranges))(params, first[0])

    return halve(run, params, (images[0], operands[:cut]), operands[cut:])


@functools.cache
def _make_heads(apply: Apply, cuts: tuple[int, ...]) -> Callable[..., list[list[Array]]]:
    @jax.jit
    def heads(params: PyTree, images: Array, ranges: Ranges, base: Int[Array, "L 2"]) -> list[list[Array]]:
        """What the known policy gives at each cut, [micro-batches, images, ...]."""
        operands = operands_under(apply, params, images[0], base, ranges)
        halves = [_halves(apply, cut, params, images, ranges, operands).head for cut in cuts]
        one = lambda batch: [head(params, (batch, operands[:cut])) for head, cut in zip(halves, cuts, strict=True)]
        return jax.lax.map(one, images)

    return heads


@functools.cache
def _make_judge(apply: Apply, cuts: tuple[int, ...]) -> Callable[..., Evaluation]:
    def judge(
        params: PyTree, images: Array, labels: Array, ranges: Ranges, base: Int[Array, "L 2"], kept: list[list[Array]],
        policies: Int[Array, "N L 2"],
    ) -> Evaluation:  # fmt: skip
        def whole(operands: tuple[Operands, ...]) -> tuple[Array, Array]:
            run = with_hook(apply, hook_with(operands, ranges))
            return jax.lax.map(lambda batch: count_answers(run(params, batch[0]), batch[1]), (images, labels))

        def from_cut(cut: int, there: list[Array], operands: tuple[Operands, ...]) -> tuple[Array, Array]:
            tail = _halves(apply, cut, params, images, ranges, operands).tail
            run = lambda batch: count_answers(tail(params, batch[0], operands[cut:]), batch[1])
            return jax.lax.map(run, (there, labels))

        branches: list[Callable] = [whole]
        branches += [functools.partial(from_cut, cut, there) for cut, there in zip(cuts, kept, strict=True)]

        def measure(policy: Int[Array, "L 2"]) -> tuple[Array, Array]:
            differs = jnp.append((policy != base).any(-1), True)
            branch = (jnp.array(cuts) <= jnp.argmax(differs)).sum()
            counts = jax.lax.switch(branch, branches, operands_under(apply, params, images[0], policy, ranges))
            return jax.tree.map(lambda part: add_up(part) / (labels >= 0).sum(), counts)

        return Evaluation(*jax.lax.map(measure, policies))

    return judge
