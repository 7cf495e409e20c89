"""Policies that begin like a known one go on from where it was, and are evaluated as if they had not."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import haqjax
import haqjax.run.answers.common
import haqjax.run.evaluators
from haqjax.data import Split
from haqjax.evaluation import make_evaluator
from haqjax.evaluation.prefix_reuse import choose_cuts, make_prefix_evaluator, saved_fraction, split_network
from haqjax.models import outline
from haqjax.quantizers.integer_layers import prepare_layers
from haqjax.run import SearchConfig, run_search
from haqjax.run.evaluators import make_search_evaluator
from haqjax.searchers.probes import list_probes
from haqjax.tracing.partial_eval import split_program
from run_world import install

IMAGES, SIZE, WIDTH, CLASSES = 11, 6, 8, 5
LAYERS, CUTS = 7, (2, 3, 5)
LAST = ("NHWC", "HWIO", "NHWC")


def apply(params, x):
    """A stem, two residual blocks of a depthwise and a pointwise convolution, and two dense layers."""
    convolve = lambda x, name, groups=1: jax.lax.conv_general_dilated(
        x, params[name], (1, 1), "SAME", dimension_numbers=LAST, feature_group_count=groups
    )
    x = jax.nn.relu(convolve(x, "stem"))
    for block in "ab":
        x = x + jax.nn.relu(convolve(jax.nn.relu(convolve(x, f"{block}.depthwise", WIDTH)), f"{block}.pointwise"))
    return jax.nn.relu(x.mean((1, 2)) @ params["first"]) @ params["second"]


@pytest.fixture(scope="module")
def world():
    """Residual connections cross the cuts."""
    shapes = {"stem": (3, 3, 3, WIDTH), "first": (WIDTH, 16), "second": (16, CLASSES)}
    shapes |= {f"{block}.depthwise": (3, 3, 1, WIDTH) for block in "ab"}
    shapes |= {f"{block}.pointwise": (1, 1, WIDTH, WIDTH) for block in "ab"}
    random = np.random.default_rng(0)
    params = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    images = random.normal(size=(IMAGES, SIZE, SIZE, 3)).astype(np.float32)
    return apply, params, Split(images, random.integers(0, CLASSES, IMAGES, np.int32))


@pytest.fixture(scope="module", params=["nearest", "output"])
def evaluations(world, request):
    """Probes and random policies, by both evaluators."""
    apply, params, split = world
    ranges = haqjax.calibrate(apply, params, [split.images], rounding=request.param)
    bounds = haqjax.policies.bounds.make_bounds(haqjax.layers(apply, params, split.images[:1]))
    probes = list_probes(bounds, 2)
    random = np.random.default_rng(1).integers(2, 9, (4, *probes[0].shape))
    policies = jnp.asarray(np.stack([*probes, *random]))
    evaluator = make_prefix_evaluator(apply, params, split, ranges, probes[0], CUTS, batch_size=4)
    plain = make_evaluator(apply, params, split, ranges, batch_size=4)
    run = jax.jit(lambda evaluator, policies: evaluator(policies))
    return run(evaluator, policies), run(plain, policies)


def test_every_policy_is_evaluated_alike(evaluations):
    with_cuts, plain = evaluations
    right = [np.rint(np.asarray(one.accuracy, float) * IMAGES) for one in evaluations]
    np.testing.assert_array_equal(*right)
    np.testing.assert_allclose(with_cuts.loss, plain.loss, rtol=1e-4)
    assert len(np.unique(np.asarray(plain.loss))) > len(plain.loss) // 2


def test_policies_are_data(world):
    """One program serves all of them."""
    apply, params, split = world
    ranges = haqjax.calibrate(apply, params, [split.images], rounding="nearest")
    evaluator = make_prefix_evaluator(apply, params, split, ranges, jnp.full((LAYERS, 2), 8), CUTS[:1])
    run = jax.jit(lambda evaluator, policies: evaluator(policies).loss)
    for bits in (8, 4):
        run(evaluator, jnp.full((2, LAYERS, 2), bits))
    assert run._cache_size() == 1


def test_what_was_kept_is_what_is_gone_on_from(world):
    """Were the kept results others, policies that differ after a cut would be told otherwise, the rest the same."""
    apply, params, split = world
    ranges = haqjax.calibrate(apply, params, [split.images], rounding="nearest")
    base = jnp.full((LAYERS, 2), 8)
    evaluator = make_prefix_evaluator(apply, params, split, ranges, base, CUTS)
    kept = evaluator.extra._replace(activations=jax.tree.map(jnp.zeros_like, evaluator.extra.activations))
    blank = dataclasses.replace(evaluator, extra=kept)
    places = range(len(base))
    policies = jnp.stack([base.at[at, 0].set(4) for at in places])
    run = jax.jit(lambda evaluator, policies: evaluator(policies).loss)
    same = np.isclose(run(evaluator, policies), run(blank, policies), rtol=1e-6)
    assert same.tolist() == [at < CUTS[0] for at in places]


def test_the_rest_of_a_network_holds_the_rest_of_its_layers(world):
    apply, params, split = world
    ranges = haqjax.calibrate(apply, params, [split.images], rounding="nearest")
    images = jnp.asarray(split.images)[None]
    policy = jnp.full((LAYERS, 2), 8)
    operands = prepare_layers(apply, params, images[0], policy, ranges).operands()
    work = []
    for cut in (0, *CUTS):
        halves = split_network(apply, cut, params, images, ranges, operands)
        kept = jax.eval_shape(halves.head, params, (images[0], operands[:cut]))
        tail = jax.jit(halves.tail).lower(params, kept, operands[cut:]).compile().cost_analysis()
        work.append(tail["flops"])
    table = haqjax.layers(apply, params, split.images[:1])
    left = np.array([table.macs[cut:].sum() for cut in (0, *CUTS)]) / table.macs.sum()
    np.testing.assert_allclose(np.array(work) / work[0], left, atol=0.12)


def test_a_function_is_cut_at_what_it_depends_on():
    def function(shared, first, rest):
        scale = jnp.exp(shared["a"])
        before = jnp.sin(scale * first) ** 2
        return {"both": before * rest + scale, "first": before, "rest": rest, "three": jnp.float32(3)}

    arguments = {"a": jnp.float32(0.3)}, jnp.arange(4.0), jnp.arange(4.0) + 1
    halves = split_program(function, *arguments)
    kept = halves.head(*arguments[:2])
    assert [leaf.shape for leaf in kept] == [(4,)]  # `scale` is computed again, `before` is kept once
    told, expected = halves.tail(arguments[0], kept, arguments[2]), function(*arguments)
    jax.tree.map(np.testing.assert_array_equal, told, expected)


def test_cuts_spare_most_of_what_can_be_spared(world):
    table = haqjax.layers(world[0], world[1], world[2].images[:1])
    chosen = choose_cuts(table, IMAGES)
    loop = 0.0
    for layer in range(len(table)):
        loop += table.macs[: max([0, *(cut for cut in chosen if cut <= layer)])].sum() / table.macs.sum()
    assert saved_fraction(table, chosen) == pytest.approx(loop / len(table))
    random = np.random.default_rng(0)
    for _ in range(100):
        other = tuple(sorted(random.choice(np.arange(1, len(table)), 3, replace=False)))
        assert saved_fraction(table, other) <= saved_fraction(table, chosen)
    assert choose_cuts(table, 10**9) == ()


def test_cuts_of_a_deep_network_are_chosen_without_trying_all():
    network = outline("mobilenet_v2", classes=10, image_size=32)
    table = haqjax.layers(network.apply, network.params, network.example)
    each = [saved_fraction(table, choose_cuts(table, IMAGES, count)) for count in range(1, len(table))]
    assert (np.diff(each) >= 0).all()
    assert choose_cuts(table, IMAGES, 1000) == tuple(range(1, len(table)))
    pairs = itertools.combinations(range(1, len(table)), 2)
    assert each[1] == pytest.approx(max(saved_fraction(table, pair) for pair in pairs))


def test_cuts_outside_the_network_are_told(world):
    apply, params, split = world
    ranges = haqjax.calibrate(apply, params, [split.images], rounding="nearest")
    base = jnp.full((LAYERS, 2), 8)
    for cuts in ((0,), (5, 5), (9, 3), (len(base),)):
        with pytest.raises(ValueError, match="give ascending numbers of layers, from 1 to below"):
            make_prefix_evaluator(apply, params, split, ranges, base, cuts)
    with pytest.raises(ValueError, match="on no images"):
        make_prefix_evaluator(apply, params, split.take(np.arange(0)), ranges, base, (1,))


@pytest.fixture
def tiny(monkeypatch):
    """Searches of a network of four layers; lists what evaluators were made of."""
    install(monkeypatch)
    monkeypatch.setattr(haqjax.run.answers.common, "save", lambda *figure: None)
    made = []

    def make(*world, **options):
        made.append(world[4:])
        return make_prefix_evaluator(*world, **options)

    monkeypatch.setattr(haqjax.run.evaluators, "make_prefix_evaluator", make)
    return made


def read(out):
    return json.loads((out / "policy.json").read_text())


@pytest.mark.parametrize("metric, base", [("latency", [8, 8]), ("size", [8, 32])])
def test_a_search_with_cuts_finds_the_same(tiny, tmp_path, metric, base):
    asked = dict(layers="*=2-8", rounding="nearest", episodes=24, metric=metric, budget="0.6")
    found = []
    for cuts in (None, 3):
        config = SearchConfig.of(**asked, cuts=cuts, out=str(tmp_path / f"{cuts}"))
        found.append(read(run_search(config, Console(quiet=True))))
    ((widest, cuts),) = tiny
    assert widest.tolist() == [base] * 4 and cuts == (1, 2, 3)
    assert found[0]["layers"] == found[1]["layers"] and found[0]["accuracies"] == found[1]["accuracies"]


def test_a_search_with_cuts_goes_on_with_them(tiny, tmp_path):
    asked = dict(layers="*=2-8", rounding="nearest", budget="0.6", cuts=2)
    whole = run_search(SearchConfig.of(**asked, episodes=24, out=str(tmp_path / "whole")), Console(quiet=True))
    out = run_search(SearchConfig.of(**asked, episodes=8, out=str(tmp_path / "halted")), Console(quiet=True))
    run_search(SearchConfig.of(resume=str(out), episodes=24), Console(quiet=True))
    assert read(out) == read(whole) and (out / "episodes.csv").read_text() == (whole / "episodes.csv").read_text()
    assert len(tiny) == 3


def test_cuts_are_for_probes_on_one_device(monkeypatch):
    for asked in (dict(search="haq"), dict(finetune_steps=1)):
        with pytest.raises(ValueError, match="cuts 3 are for the search 'ilp', without fine-tuning: leave them out"):
            SearchConfig.of(cuts=3, **asked)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    prepared = SimpleNamespace(data=SimpleNamespace(search=None))
    with pytest.raises(ValueError, match="cuts 3 are for one device, here are 8: leave them out"):
        make_search_evaluator(SearchConfig.of(cuts=3), prepared, None, None, None)
