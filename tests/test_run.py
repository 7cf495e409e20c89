"""A whole run in a small world: its folder, its repeatability, and what bad input leaves behind (nothing)."""

import csv
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from rich.console import Console

import haqjax.run.float_network
from haqjax import budget, calibrate, cost_table, layers, machine, quantize, total_cost
from haqjax.cli import main
from haqjax.data import Dataset, Split
from haqjax.evaluation import make_evaluator
from haqjax.evaluation.batches import split_into_batches
from haqjax.evaluation.evaluator import only_finite
from haqjax.hardware import save_table
from haqjax.models import outline
from haqjax.models.resnet import CifarResNet
from haqjax.run import (
    EvaluateConfig,
    FinetuneConfig,
    SearchConfig,
    TrainConfig,
    run_evaluate,
    run_finetune,
    run_search,
    run_train,
)
from haqjax.run.evaluators import measure
from haqjax.run.folder.documents import open_folder
from haqjax.run.folder.journal import open_journal, read_back, read_warm_start
from haqjax.run.resumable import make_searcher
from haqjax.run.setup import prepare
from haqjax.searchers import driver, loop, make_problem
from haqjax.types import Evaluation, Evaluator

EPISODES = 10  # not a multiple of the 4 policies of a round


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Digits of 8 pixels, ResNet-8 in place of ResNet-20, two epochs of training, and a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(haqjax.models.network.MODELS, "resnet20", functools.partial(CifarResNet, blocks_per_stage=1))
        patch.setenv("HAQJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipe = haqjax.run.float_network.RECIPES["resnet20"] | {"epochs": 2}
        patch.setitem(haqjax.run.float_network.RECIPES, "resnet20", recipe)
        yield tmp_path_factory.mktemp("runs")


def run(out, **changes):
    asked = {"model": "resnet20", "image_size": 8, "episodes": EPISODES, "budget": "0.6", "search": "haq"} | changes
    config = SearchConfig.of(out=str(out), **asked)
    with open(f"{out}.txt", "w") as said:
        run_search(config, Console(file=said, width=100))
    return config


@pytest.fixture(scope="module")
def finished(world):
    run(world / "first")
    return world / "first"


def read(folder):
    return json.loads((folder / "policy.json").read_text())


def test_the_policy_is_priced_and_measured_as_the_library_would(finished):
    told = read(finished)
    network = outline("resnet20", classes=10, image_size=8)
    table_of = layers(network.apply, network.params, network.example)
    table = cost_table(machine("edge"), table_of)
    policy = jnp.array([[row["weight_bits"], row["activation_bits"]] for row in told["layers"]])
    assert [row["name"] for row in told["layers"]] == list(table_of.names)
    assert policy[0].tolist() == policy[-1].tolist() == [8, 8]
    full = float(total_cost(table, jnp.full_like(policy, 8)).latency)
    for name, expected in (("policy", policy), ("8_bits", jnp.full_like(policy, 8))):
        assert told["costs"][name]["latency_s"] == pytest.approx(float(total_cost(table, expected).latency))
    assert told["budget"]["latency_s"] == pytest.approx(0.6 * full)
    assert told["costs"]["policy"]["latency_s"] <= 0.6 * full * (1 + 1e-6)
    assert told["costs"]["uniform"]["latency_s"] <= 0.6 * full * (1 + 1e-6)
    assert set(told["accuracies"]["report"]) == {"float", "8_bits", "uniform", "policy", "images"}


def test_every_episode_is_recorded_within_the_budget(finished):
    told = read(finished)
    rows = list(csv.DictReader((finished / "episodes.csv").read_text().splitlines()))
    assert [int(row["episode"]) for row in rows] == list(range(EPISODES))
    assert all(float(row["latency_s"]) <= told["budget"]["latency_s"] * (1 + 1e-6) for row in rows)
    best = [float(row["best_accuracy"]) for row in rows]
    assert best == list(np.maximum.accumulate([float(row["accuracy"]) for row in rows]))
    assert (
        told["accuracies"]["search"]["policy"]
        == pytest.approx(best[-1])
        == float(rows[told["best_episode"]]["accuracy"])
    )


def test_the_folder_is_complete(finished):
    there = sorted(
        str(path.relative_to(finished))
        for path in finished.rglob("*")
        if path.is_file() and path.relative_to(finished).parts[0] not in ("checkpoints", "tensorboard")
    )
    figures = [f"figures/{name}.{end}" for name in ("bits", "search") for end in ("png", "svg")]
    assert there == sorted(["config.yaml", "episodes.csv", "policy.json", *figures])
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["seed"] == 0 and config["versions"]["jax"] == jax.__version__
    said = Path(f"{finished}.txt").read_text()
    assert all(words in said for words in ("8 bits", "uniform", "found by haq", "±", str(finished)))


def test_the_same_seed_gives_the_same_policy_and_trains_nothing_again(finished, world, monkeypatch):
    monkeypatch.setattr(haqjax.run.float_network, "train_network", None)  # calling it would fail
    compiled = driver.evaluate._cache_size()
    run(world / "again")
    assert read(world / "again") == read(finished)
    run(world / "other", seed=1)
    assert driver.evaluate._cache_size() == compiled  # other seeds and other arrays are data
    assert read(world / "other")["layers"] != read(finished)["layers"]


def test_random_search_and_a_size_budget(world, finished):
    run(world / "size", search="random", metric="size", budget=0.7)
    told = read(world / "size")
    assert told["costs"]["policy"]["size_bytes"] <= 0.7 * told["costs"]["8_bits"]["size_bytes"]
    assert {row["activation_bits"] for row in told["layers"]} == {32}, "left alone"


def test_several_budgets_at_once_with_memory_and_bit_operations(world, finished):
    run(world / "several", search="random", metric="latency,bops,memory,size", budget="0.8,0.5,0.6,150KiB")
    told = read(world / "several")
    spent, full, limit = told["costs"]["policy"], told["costs"]["8_bits"], told["budget"]
    for name, fraction in (("latency_s", 0.8), ("bops", 0.5), ("memory_bytes", 0.6)):
        assert limit[name] == pytest.approx(fraction * full[name])
        assert spent[name] <= limit[name] * (1 + 1e-6)
    assert spent["size_bytes"] <= limit["size_bytes"] == 150 * 1024
    assert limit["fraction"] == {"latency": 0.8, "bops": 0.5, "memory": 0.6} and limit["energy_j"] is None
    said = Path(f"{world / 'several'}.txt").read_text()
    assert "latency at most 0.8 of 8 bits" in said and "size at most 150KiB" in said and "memory" in said


def test_a_table_with_some_widths_restricts_the_search(world, finished):
    network = outline("resnet20", classes=10, image_size=8)
    table_of = layers(network.apply, network.params, network.example)
    table = cost_table(machine("edge"), table_of)
    for w, a in itertools.product(range(8), repeat=2):
        if w + 1 not in (2, 4, 8) or a + 1 not in (4, 8):
            table.latency[:, w, a] = np.nan
    save_table(world / "some.csv", table, table_of)
    run(world / "some", hw=str(world / "some.csv"))
    told = read(world / "some")
    assert {row["weight_bits"] for row in told["layers"]} <= {2, 4, 8}
    assert {row["activation_bits"] for row in told["layers"]} <= {4, 8}
    assert told["costs"]["policy"]["latency_s"] <= told["budget"]["latency_s"] * (1 + 1e-6)


def test_ctrl_c_keeps_what_was_found(world, finished, monkeypatch):
    usual = loop.run_round

    def stop_in_round_2(*arguments):
        if int(arguments[2].episode) == 4:
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr(loop, "run_round", stop_in_round_2)
    run(world / "stopped")
    told = read(world / "stopped")
    assert told["interrupted"] and told["episodes"] == 4


def test_a_stopped_search_goes_on_as_if_it_had_not_stopped(world, finished, monkeypatch):
    usual = loop.run_round

    def stop_in_round_2(*arguments):
        if int(arguments[2].episode) == 4:
            raise KeyboardInterrupt
        return usual(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_round", stop_in_round_2)
        run(world / "halted")
    with pytest.raises(ValueError, match="was started with budget '0.6', not '0.5'"):
        run_search(SearchConfig.of(resume=str(world / "halted"), budget="0.5"), Console(quiet=True))
    run_search(SearchConfig.of(resume=str(world / "halted")), Console(quiet=True))
    assert read(world / "halted") == read(finished)
    for name in ("episodes.csv", "config.yaml"):
        whole, halted = ((folder / name).read_text() for folder in (finished, world / "halted"))
        assert halted.replace("halted", "first") == whole
    run_search(SearchConfig.of(resume=str(world / "halted"), episodes=EPISODES + 2), Console(quiet=True))
    assert read(world / "halted")["episodes"] == EPISODES + 2


def test_a_race_reports_what_every_image_says(world, finished):
    run(world / "raced", race=0.0)
    raced, whole = read(world / "raced"), read(finished)
    assert raced["best_episode"] is not None
    policy = jnp.array([[row["weight_bits"], row["activation_bits"]] for row in raced["layers"]])
    again = run_evaluate(EvaluateConfig(run=str(world / "raced")), Console(quiet=True))
    assert again["policy"] == pytest.approx(raced["accuracies"]["report"]["policy"])
    first, other = (
        list(csv.DictReader((folder / "episodes.csv").read_text().splitlines()))
        for folder in (finished, world / "raced")
    )
    assert first[0] == other[0] and len(policy) == len(whole["layers"])  # nothing to be held against yet
    best = max(float(row["accuracy"]) for row in other)
    assert raced["accuracies"]["search"]["policy"] == pytest.approx(best)


def test_extensions_of_the_agent_change_what_it_proposes(world, finished):
    run(world / "improved", extensions="start, swap")
    told = read(world / "improved")
    assert told["layers"] != read(finished)["layers"] or told["best_episode"] != read(finished)["best_episode"]
    config = yaml.safe_load((world / "improved" / "config.yaml").read_text())
    assert config["extensions"] == "start, swap"


def test_an_agent_starts_with_what_another_learned_on_another_network(world, finished):
    run(world / "warm", warm_start=str(finished), hw="cloud", seed=5)
    config = SearchConfig.of(
        model="resnet20", image_size=8, episodes=EPISODES, budget="0.6", hw="cloud", search="haq", seed=5
    )
    of = prepare(config)
    problem = make_problem(of.layers, of.table, of.bounds, of.budget, lambda policies: policies[:, 0, 0], 0.5)
    searcher = make_searcher(config)
    begun = read_warm_start(finished, searcher, problem, jax.random.key(5)).state.agent
    with open_journal(finished, open_folder(finished)) as journal:
        learned = read_back(journal, searcher, problem).state.agent
    for new, old in zip(jax.tree.leaves(begun.actor), jax.tree.leaves(learned.actor), strict=True):
        np.testing.assert_array_equal(new, old)
    assert int(begun.updates) == 0 < int(learned.updates)
    with pytest.raises(ValueError, match="is of the search 'random', which has no agent"):
        copy = shutil.copytree(finished, world / "by_random")
        told = yaml.safe_load((copy / "config.yaml").read_text()) | {"search": "random"}
        (copy / "config.yaml").write_text(yaml.safe_dump(told))
        run(world / "no_agent", warm_start=str(copy))


@pytest.mark.parametrize(
    "repeated",
    [{"extensions": "start"}, {"race": 0.1}, {"warm_start": "runs/other"}, {"budget": "0.3,0.5"}, {"front": "latency"}],
)
def test_a_run_is_resumed_with_its_options_repeated(repeated):
    """They are compared with the run's own, and not with the usual search."""
    assert SearchConfig.of(resume="runs/mine", **repeated).run.resume == "runs/mine"


def test_checkpoints_of_another_search_or_cut_short_are_told_in_one_line(world, finished):
    copy = shutil.copytree(finished, world / "cut")
    for file in (copy / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="checkpoints in .* can be read: remove it to begin anew"):
        run_search(SearchConfig.of(resume=str(copy)), Console(quiet=True))
    copy = shutil.copytree(finished, world / "other_config")
    told = yaml.safe_load((copy / "config.yaml").read_text()) | {"seed": 3}
    (copy / "config.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(ValueError, match="are of another run: seed was 0 and is 3 now"):
        run_search(SearchConfig.of(resume=str(copy)), Console(quiet=True))
    assert read(copy) == read(finished)
    with pytest.raises(ValueError, match="nowhere is not there"):
        run_search(SearchConfig.of(resume=str(world / "nowhere")), Console(quiet=True))


def test_ctrl_c_before_the_first_round_leaves_nothing(world, finished, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "run_round", stop)
    with pytest.raises(RuntimeError, match="nothing was found"):
        run(world / "never")
    assert not (world / "never").exists()


@pytest.fixture(scope="module")
def weights(world, finished):
    return run_train(TrainConfig(model="resnet20", image_size=8, out=str(world / "weights")), Console(quiet=True))


def test_trained_weights_serve_a_search(world, finished, weights, monkeypatch):
    monkeypatch.setattr(haqjax.run.float_network, "train_network", None)
    run(world / "own", weights=str(weights))
    assert read(world / "own")["layers"] == read(finished)["layers"]  # the cached network is that of seed 0, too


def test_weights_of_another_network_are_refused(world, weights):
    with pytest.raises(ValueError, match="of another network"):
        run(world / "no", model="resnet56", weights=str(weights))
    assert not (world / "no").exists()


def test_a_run_is_evaluated_and_fine_tuned_by_its_folder(world, finished):
    finished = shutil.copytree(finished, world / "copy")
    told = read(finished)["accuracies"]["report"]
    measured = run_evaluate(EvaluateConfig(run=str(finished)), Console(quiet=True))
    for name, label in (("float", "float"), ("8_bits", "8 bits"), ("uniform", "uniform"), ("policy", "policy")):
        assert measured[label] == pytest.approx(told[name])
    config = FinetuneConfig(run=str(finished), epochs=3)
    run_finetune(config, Console(quiet=True))
    tuned = json.loads((finished / "finetune.json").read_text())["report"]
    assert tuned["before"] == pytest.approx(told["policy"])
    measured = run_evaluate(EvaluateConfig(run=str(finished)), Console(quiet=True))
    assert measured["policy, fine-tuned"] == pytest.approx(tuned["after"])
    assert tuned["after"] > tuned["before"] - 0.03
    with pytest.raises(ValueError, match="finetuned exists and is never overwritten"):
        run_finetune(config, Console(quiet=True))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda told: told | {"weights": "0" * 16}, "the float network of .* is not at hand"),
        (lambda told: {k: v for k, v in told.items() if k != "layers"}, "policy.json lacks layers"),
        (lambda told: told | {"layers": told["layers"][:-1]}, "the policy has 7 layers, the network 8"),
        (lambda told: [], r"policy.json is \[\], expected object"),
    ],
)
def test_a_run_that_was_tampered_with_is_refused(world, finished, change, message, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "policy.json").write_text(json.dumps(change(read(finished))))
    with pytest.raises(ValueError, match=message):
        run_evaluate(EvaluateConfig(run=str(folder)), Console(quiet=True))


@pytest.mark.parametrize("command", [run_evaluate, run_finetune])
def test_a_folder_that_is_no_run_is_refused(command, tmp_path):
    config = (EvaluateConfig if command is run_evaluate else FinetuneConfig)(run=str(tmp_path))
    with pytest.raises(ValueError, match="is no run folder: it has no config.yaml"):
        command(config, Console(quiet=True))


BAD = [
    (["--model", "resnet18"], "unknown model 'resnet18': there are mobilenet_v1, mobilenet_v2, resnet20"),
    (["--hw", "tpu9"], "tpu9"),
    (["--metric", "time"], "unknown metric 'time'"),
    (["--search", "luck"], "unknown search 'luck': there are "),
    (["--resume", "nowhere"], "nowhere is not there: give the folder of a run"),
    (["--layers", "no.such=4"], "'no.such' matches none of the 53 layers"),
    (["--layers", "stem=8/"], "rule 'stem=8/': widths are 8, or 2,4,8"),
    (["--layers", "*=1-8"], "allow stem weights of 1 bit: linear levels need 2"),
    (["--tie", "+"], "group '+' has nothing beside a '+'"),
    (["--image-size", "100000"], "image_size is 100000: give a whole number from 1 to 4096; larger ones fill"),
    (["--image-size", "1000"], "from 1 to 256; digits are of 8, and all are held in memory"),
    (["--budget", "1e300"], "budget is '1e300': give at most 1e+24"),
    (["--hw", "edge\n"], "unknown machine edge\\n; there are"),
    (["--out", "/proc/x"], "/proc/x cannot be made: /proc is no folder that can be written to"),
    (["--out", "x" * 300], "is a name of 300 bytes: at most 215"),
    (["--out", "~/x"], "'~' is not read as the home folder here"),
    (["--resume", "."], ". is no run folder: it has no config.yaml"),
    (["--weights", "none.safetensors"], "there are no weights at 'none.safetensors'"),
    (
        ["--search", "haq", "--extensions", "wings"],
        "unknown extension 'wings': there are costs, loss, retain, start, swap, twin",
    ),
    (["--extensions", "twin"], "extensions 'twin' are to the search 'haq', not to 'ilp'"),
    (["--search", "haq", "--extensions", "start", "--max-drop", "1"], "is for a search within one budget"),
    (["--search", "haq", "--race", "1"], "race is 1.0: give the chance of an error, from 0 to below 1"),
    (["--race", "0.1"], "race 0.1 is for haq, random, uniform"),
    (["--warm-start", "runs/x", "--search", "random"], "warm_start 'runs/x' is for the search 'haq'"),
    (["--finetune-steps", "-1"], "finetune_steps is -1"),
    (["--search-images", "0"], "search_images is 0"),
    (["--data", "cifar"], "unknown data set 'cifar'"),
    (["--data", "tfds:none_such"], "none_such"),
    *((["--budget", value], "budget is") for value in ("0", "-1", "nan", "inf")),
    (["--budget", "0.05"], "below the floor"),
    (["--budget", "half"], "budget is 'half': give a fraction"),
    (["--budget", "3kg"], "budget '3kg': latency is measured in s, ms, us, ns, not kg"),
    (["--metric", "latency,size", "--budget", "1,2,3"], "has 3 limits for 2 metrics"),
    (["--metric", "size,size"], "names a resource twice"),
    (["--metric", "memory", "--budget", "1KiB"], "memory budget 1 KiB is below the floor"),
    (["--modle", "resnet50"], "--modle"),
    (["--episodes", "0"], "episodes is 0"),
    (["--episodes", "ten"], "Error parsing --episodes: invalid literal"),
    (["--search-images", "some"], "Error parsing --search-images: no type"),
    (["--seed", "-1"], "seed is -1"),
    (["--seed", str(2**63)], "seed is 9223372036854775808"),
    (["--weights", "nowhere"], "weights 'nowhere' is no folder"),
    (["--out", "."], "exists and is never overwritten"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[" ".join(words)[:40] for words, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HAQJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "the tests' own")
    monkeypatch.setattr(sys, "argv", ["haqjax", "search", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.err.count("\n") == 1 and message in said.err and not said.out
    assert not list(tmp_path.iterdir())


LONG = [  # options that a record's own check refuses
    {"model": "resnet18"},
    {"hosts": "here"},
    {"cuts": 3, "finetune_steps": 1},
    {"race": 0.1},
    {"max_drop": 1.0, "budget": "0.6"},
]


@pytest.mark.parametrize("options", LONG, ids=lambda options: "+".join(options))
def test_a_message_longer_than_the_terminal_is_wide_stays_one_line(options, monkeypatch, capsys):
    with pytest.raises(ValueError) as refused:
        SearchConfig.of(**options)
    monkeypatch.setenv("COLUMNS", "60")
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    monkeypatch.setattr(sys, "argv", ["haqjax", "search", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert len(str(refused.value)) > 60 and capsys.readouterr() == ("", f"haqjax: {refused.value}\n")


def test_a_process_ends_with_that_line_and_status_2(tmp_path):
    with pytest.raises(ValueError) as refused:
        SearchConfig.of(race=0.1)
    words = [sys.executable, "-m", "haqjax", "search", "--race", "0.1"]
    ended = subprocess.run(words, cwd=tmp_path, env=os.environ | {"COLUMNS": "40"}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"haqjax: {refused.value}\n")
    assert not list(tmp_path.iterdir())


def test_a_budget_below_the_floor_says_what_holds_it(tmp_path):
    with pytest.raises(ValueError, match=r"latency budget .* ms is below the floor .* ms .*, most of it in \S+ \d+ %"):
        prepare(SearchConfig.of(model="mobilenet_v2", budget=0.02))


def test_the_evaluator_equals_the_quantised_network_and_counts_nothing_that_is_not_finite():
    apply = lambda params, x: x.reshape(len(x), -1) @ params["w"]
    params = {"w": jax.random.normal(jax.random.key(0), (12, 4))}
    images = np.asarray(jax.random.normal(jax.random.key(1), (7, 2, 2, 3)))
    split = Split(images, np.argmax(apply(params, images), -1).astype(np.int32))
    ranges = calibrate(apply, params, [images])
    some = jnp.array([[[8, 8]], [[2, 3]], [[32, 32]], [[1, 8]]])
    evaluator = make_evaluator(apply, params, split, ranges, batch_size=3, policies_at_once=2)
    found = jax.jit(lambda evaluator, policies: evaluator(policies).accuracy)(evaluator, some)
    for policy, accuracy in zip(some[:3], found[:3], strict=True):
        answers = quantize(apply)(params, images, policy, ranges).argmax(-1)
        assert float(accuracy) == pytest.approx(np.mean(answers == split.labels))
    assert float(found[2]) == 1
    assert np.isnan(found[3])  # one-bit weights have no level


def test_the_last_batch_is_filled_up_with_images_that_do_not_count():
    images, labels = split_into_batches(Split(np.ones((5, 1, 1, 1), np.float32), np.arange(5, dtype=np.int32)), 3)
    assert images.shape == (2, 3, 1, 1, 1) and labels.tolist() == [[0, 1, 2], [3, 4, -1]]


def test_images_that_are_not_square_are_refused():
    tall = Split(np.zeros((4, 8, 6, 3), np.float32), np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="images of tall are 8 x 6 pixels"):
        haqjax.run.float_network.empty_network("resnet20", Dataset("tall", 10, tall, tall, tall))


def test_a_budget_is_a_fraction_of_the_full_cost():
    network = outline("resnet20", classes=10, image_size=8)
    table = cost_table(machine("cloud"), layers(network.apply, network.params, network.example))
    full = total_cost(table, jnp.full((len(table), 2), 8))
    assert float(budget(table, latency=0.5).latency) == pytest.approx(0.5 * float(full.latency))


def by_bits(evaluator, policies, least):
    """Two bits give an output that is not finite."""
    bits = policies[:, 0, 0]
    return Evaluation(bits / 8, jnp.where(bits == 2, jnp.inf, 0.5))


def test_what_a_search_is_compared_with_has_an_accuracy_though_outputs_are_not_finite():
    evaluator = Evaluator(by_bits, None, None, None, None)
    found = measure(evaluator, {name: jnp.full((3, 2), bits) for name, bits in (("low", 2), ("high", 8), ("same", 8))})
    assert [float(found[name].accuracy) for name in ("low", "high", "same")] == [0.25, 1.0, 1.0]
    assert np.isposinf(found["low"].loss) and float(found["high"].loss) == 0.5


def test_what_a_search_is_compared_with_is_compiled_once_whatever_kind_of_numbers_it_is_of():
    evaluator = Evaluator(by_bits, None, None, None, None)
    measure(evaluator, {"weak": jnp.full((5, 2), 8)})
    compiled = driver.evaluate._cache_size()
    some = {"strong": jnp.full((5, 2), 7, jnp.int32), "host": np.full((5, 2), 6), "one more": np.full((5, 2), 5)}
    measure(evaluator, some)
    driver.evaluate(only_finite(evaluator), jnp.asarray(np.full((4, 5, 2), 4, np.int32)), 0.0)  # four a round
    assert driver.evaluate._cache_size() == compiled
