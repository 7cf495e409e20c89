"""The tuning of batches chooses what the clock says is fastest, remembers it, and changes no accuracy."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import haqjax
import haqjax.run.answers.common
import haqjax.run.evaluators
from haqjax.data import Split
from haqjax.evaluation import batch_tuning
from haqjax.evaluation.batch_tuning import Batches, choose_batches, list_candidates
from haqjax.evaluation.batches import suggest_batch_size
from haqjax.evaluation.evaluator import make_evaluator
from haqjax.evaluation.sensitivity import draw_policies
from haqjax.run import SearchConfig, run_search
from haqjax.run.folder.documents import open_folder
from run_world import install

QUIET = Console(quiet=True)
TRIED = [Batches(7, 1), Batches(3, 2), Batches(2, 4)]


def apply(params, x):
    return jax.nn.relu(x.reshape(len(x), -1) @ params["first"]) @ params["second"]


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(0)
    params = {"first": random.normal(size=(6, 5)), "second": random.normal(size=(5, 3))}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    split = Split(random.normal(size=(7, 1, 6, 1)).astype(np.float32), random.integers(0, 3, 7, np.int32))
    return apply, params, split, haqjax.calibrate(apply, params, [split.images])


def make_clock(seconds):
    """Says that each evaluation of the i-th candidate took `seconds[i]`."""
    times = itertools.chain.from_iterable((0.0, each) for each in np.repeat(seconds, batch_tuning.REPEATS))
    return lambda: float(next(times))


@pytest.mark.parametrize("fastest", range(3))
def test_the_fastest_is_chosen_and_remembered(world, fastest, tmp_path):
    clock = make_clock([0.1 if i == fastest else 0.2 + i for i in range(3)])
    chosen = choose_batches(*world, policies=4, cache=tmp_path, candidates=TRIED, clock=clock)
    assert chosen == TRIED[fastest]
    assert choose_batches(*world, policies=4, cache=tmp_path, candidates=TRIED, clock=pytest.fail) == chosen
    (path,) = tmp_path.glob("batch-tuning/*.json")
    told = json.loads(path.read_text())
    assert [row["seconds"] * 7 * 4 for row in told["tried"]] == pytest.approx(
        [0.1 if i == fastest else 0.2 + i for i in range(3)]
    )
    other = make_clock([3.0, 2.0, 1.0])  # another number of policies, another image size: tried anew
    assert choose_batches(*world, policies=3, cache=tmp_path, candidates=TRIED, clock=other) == TRIED[2]
    assert len(list(tmp_path.glob("batch-tuning/*.json"))) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"chosen": {"batch_size": 5}}', '{"chosen": {"batch_size": 9, "x": 1}}'])
def test_a_file_that_says_nothing_useful_is_replaced(world, text, tmp_path):
    choose_batches(*world, policies=2, cache=tmp_path, candidates=TRIED, clock=make_clock([1.0, 2.0, 3.0]))
    (path,) = tmp_path.glob("batch-tuning/*.json")
    path.write_text(text)
    clock = make_clock([3.0, 1.0, 2.0])
    assert choose_batches(*world, policies=2, cache=tmp_path, candidates=TRIED, clock=clock) == TRIED[1]
    assert json.loads(path.read_text())["chosen"] == {"batch_size": 3, "policies_at_once": 2}


def test_another_process_finds_what_was_remembered(world, tmp_path):
    """No address of an object is part of the name."""
    function, params, split, ranges = world
    names = set()
    for _ in range(2):
        other = lambda params, x: apply(params, x)
        names.add(batch_tuning._describe(other, params, split, 2, TRIED))
    names.add(batch_tuning._describe(function, jax.tree.map(lambda leaf: leaf + 1, params), split, 2, TRIED))
    assert len(names) == 1
    assert batch_tuning._describe(function, params, split.take(np.arange(3)), 2, TRIED) not in names


def test_a_cache_that_cannot_be_written_is_no_error(world, tmp_path):
    (tmp_path / "file").write_text("")
    clock = make_clock([3.0, 1.0, 2.0])
    chosen = choose_batches(*world, policies=2, cache=tmp_path / "file", candidates=TRIED, clock=clock)
    assert chosen == TRIED[1]


def test_what_does_not_fit_the_memory_is_not_chosen(world, monkeypatch):
    evaluate = batch_tuning._evaluate

    def limited(evaluator, policies):
        if evaluator.images.shape[1] > 2:  # images in a batch
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return evaluate(evaluator, policies)

    monkeypatch.setattr(batch_tuning, "_evaluate", limited)
    clock = make_clock([9.0])
    assert choose_batches(*world, policies=2, cache=None, candidates=TRIED[::-1], clock=clock) == TRIED[2]


def test_no_choice_changes_what_is_reported(world):
    policies = draw_policies(haqjax.policies.bounds.make_bounds(2, pinned={}), 5, jax.random.key(0))
    judged = [make_evaluator(*world, **one._asdict())(jnp.asarray(policies)) for one in TRIED]
    for other in judged[1:]:
        right = [np.rint(np.asarray(one.accuracy, float) * 7) for one in (other, judged[0])]  # images
        np.testing.assert_array_equal(*right)
        np.testing.assert_allclose(other.accuracy, judged[0].accuracy, rtol=1e-6)
        np.testing.assert_allclose(other.loss, judged[0].loss, rtol=1e-5)


def test_a_cpu_needs_no_timing_and_an_accelerator_tries_several(world, monkeypatch):
    split = world[2]
    assert choose_batches(*world, policies=8, cache=None, clock=pytest.fail) == Batches(7, 1)
    assert suggest_batch_size(6) >= 7  # what an evaluation without tuning would take
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    many = Split(np.zeros((4000, 1, 6, 1), np.float32), np.zeros(4000, np.int32))
    found = list_candidates(many, 8)
    assert {one.policies_at_once for one in found} == {1, 4, 8}
    assert {one.batch_size for one in found} == {128, 512, 2048}
    assert len(list_candidates(split, 1)) == 2


def test_mistakes_are_told(world):
    function, params, split, ranges = world
    with pytest.raises(ValueError, match="no candidate to try"):
        choose_batches(*world, policies=8, cache=None, candidates=[])
    none = Split(split.images[:0], split.labels[:0])
    with pytest.raises(ValueError, match="on no images"):
        choose_batches(function, params, none, ranges, policies=8, cache=None)


def test_a_run_chooses_once_what_is_evaluated_at_a_time(tmp_path, monkeypatch):
    install(monkeypatch)
    monkeypatch.setattr(haqjax.run.answers.common, "save", lambda *figure: None)
    tried, used = [], []

    def choose(*world, policies, cache):
        tried.append(policies)
        return Batches(50, 2)

    def make(*world, **options):
        used.append((options["batch_size"], options["policies_at_once"]))
        return make_evaluator(*world, **options)

    monkeypatch.setattr(haqjax.run.evaluators, "choose_batches", choose)
    monkeypatch.setattr(haqjax.run.evaluators, "make_evaluator", make)
    out = str(tmp_path / "run")
    run_search(
        SearchConfig.of(search="random", layers="*=2-8", rounding="nearest", budget="0.6", episodes=4, out=out), QUIET
    )
    run_search(SearchConfig.of(resume=out, episodes=8), QUIET)
    assert tried == [4]  # not again by the run that goes on
    assert set(used) == {(50, 2)} and len(used) == 4  # search and report, twice
    chosen = open_folder(out).evaluation
    assert (chosen.batch_size, chosen.policies_at_once) == (50, 2)


def test_what_is_said_is_not_tried(monkeypatch):
    monkeypatch.setattr(haqjax.run.evaluators, "choose_batches", pytest.fail)
    for asked in (
        dict(batch_size=7),
        dict(policies_at_once=2),
        dict(finetune_steps=1),
        dict(race=0.0, search="haq", budget="0.6"),
    ):
        config = SearchConfig.of(**asked)
        assert haqjax.run.evaluators.choose_batch_sizes(config, None, None, None) is config
    with pytest.raises(ValueError, match="policies_at_once is 0: give a whole number from 1"):
        SearchConfig.of(policies_at_once=0)
