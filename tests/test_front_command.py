"""Fronts and the cheapest accurate policy from the command line, against the library and by hand."""

import csv
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from rich.console import Console

from haqjax import calibrate, cost_table, layers, machine, quantize, total_cost
from haqjax.cli import main
from haqjax.policies.actions import from_rows
from haqjax.run import EvaluateConfig, SearchConfig, run_evaluate, run_search
from haqjax.searchers import SEARCHERS, loop
from haqjax.searchers import front as fronts
from run_world import IMAGES, apply, install, make_data, make_network

FRONT = {"front": "latency", "search": "random", "episodes": 24, "patience": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        install(patch)
        yield tmp_path_factory.mktemp("runs")


def run(out, **changes):
    with open(f"{out}.txt", "w") as said:
        run_search(
            SearchConfig.of(model="resnet20", layers="*=2-8", rounding="nearest", out=str(out), **changes),
            Console(file=said, width=100),
        )
    return out


def read(folder, name="front.json"):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def front(world):
    return run(world / "front", **FRONT)


def measure(policy):
    """Accuracies on the search and the report split, by the library's own door."""
    network, data = make_network(), make_data()
    ranges = calibrate(apply, network.params, [data.train.images[at : at + 64] for at in (0, 64)], rounding="nearest")
    right = lambda split: quantize(apply)(network.params, split.images, policy, ranges).argmax(-1) == split.labels
    return [float(right(split).mean()) for split in (data.search, data.report)]


def test_the_policies_of_a_front_are_priced_and_measured_as_the_library_would(front):
    told, network = read(front), make_network()
    table_of = layers(apply, network.params, network.example)
    table = cost_table(machine("edge"), table_of)
    full = float(total_cost(table, jnp.full((4, 2), 8)).latency)
    assert [entry["budget"]["fraction"] for entry in told["policies"]][-1] == 1
    assert len(told["policies"]) == 8
    for entry in told["policies"]:
        policy = from_rows(entry["layers"], table_of.names)
        assert entry["costs"]["latency_s"] == pytest.approx(float(total_cost(table, policy).latency))
        limit = entry["budget"]["fraction"] * full
        assert entry["budget"]["latency_s"] == pytest.approx(limit, rel=1e-4)
        assert entry["costs"]["latency_s"] <= entry["budget"]["latency_s"] * (1 + 1e-6)
        even = entry["uniform"]["bits"]
        assert float(total_cost(table, jnp.full((4, 2), even)).latency) <= limit * (1 + 1e-6)
        assert even == 8 or float(total_cost(table, jnp.full((4, 2), even + 1)).latency) > limit
        assert [entry["accuracies"][split] for split in ("search", "report")] == pytest.approx(measure(policy))
        even_policy = jnp.full((4, 2), even)
        assert [entry["uniform"]["accuracies"][at] for at in ("search", "report")] == pytest.approx(
            measure(even_policy)
        )


def test_each_policy_of_a_front_is_the_best_episode_that_fits(front):
    rows = list(csv.DictReader((front / "episodes.csv").read_text().splitlines()))
    accuracy, cost, limits = (
        np.array([float(row[name]) for row in rows]) for name in ("accuracy", "latency_s", "budget_latency_s")
    )
    layer_costs = read(front)["policies"]
    assert limits.tolist() == pytest.approx([entry["budget"]["latency_s"] for entry in layer_costs for _ in range(3)])
    best = np.array([float(row["best_accuracy"]) for row in rows]).reshape(8, 3)
    np.testing.assert_array_equal(best, np.maximum.accumulate(accuracy.reshape(8, 3), axis=1))
    for entry in layer_costs:
        fits = cost <= entry["budget"]["latency_s"] * (1 + 1e-6)
        assert entry["accuracies"]["search"] == pytest.approx(accuracy[fits].max())
        assert accuracy[entry["episode"]] == pytest.approx(accuracy[fits].max())


def test_the_policy_of_policy_json_is_the_cheapest_within_a_standard_error(front):
    told, policy = read(front), read(front, "policy.json")
    accuracy = np.array([entry["accuracies"]["search"] for entry in told["policies"]])
    error = np.sqrt(accuracy.max() * (1 - accuracy.max()) / IMAGES)
    enough = [entry for entry in told["policies"] if entry["accuracies"]["search"] >= accuracy.max() - error]
    named = told["policies"][told["named"]]
    assert named["costs"]["latency_s"] == min(entry["costs"]["latency_s"] for entry in enough)
    assert policy["layers"] == named["layers"] and policy["front"]["named"] == told["named"]
    assert policy["costs"]["policy"] == named["costs"] and policy["budget"] == named["budget"]
    assert policy["accuracies"]["report"]["policy"] == named["accuracies"]["report"]
    assert policy["accuracies"]["search"]["policy"] == named["accuracies"]["search"]
    assert policy["uniform_bits"] == named["uniform"]["bits"]


def test_the_folder_of_a_front_is_complete(front):
    there = {
        str(path.relative_to(front))
        for path in front.rglob("*")
        if path.is_file() and path.relative_to(front).parts[0] not in ("checkpoints", "tensorboard")
    }
    figures = {f"figures/{name}.{end}" for name in ("bits", "front") for end in ("png", "svg")}
    assert there == {"config.yaml", "episodes.csv", "policy.json", "front.json", "front.csv", *figures}
    rows, told = list(csv.DictReader((front / "front.csv").read_text().splitlines())), read(front)
    assert [row["named"] for row in rows].index("True") == told["named"]
    for row, entry in zip(rows, told["policies"], strict=True):
        assert float(row["report_accuracy"]) == pytest.approx(entry["accuracies"]["report"])
        assert float(row["latency_s"]) == pytest.approx(entry["costs"]["latency_s"])
        assert float(row["uniform_report_accuracy"]) == pytest.approx(entry["uniform"]["accuracies"]["report"])
    said = (front.parent / "front.txt").read_text()
    assert said.count("bits") >= 8 and "front of latency, found by random" in said and str(front) in said
    assert said.count("*") == 2, "one row is named, and the line that says so"


def test_a_front_can_be_evaluated_again(front):
    found = run_evaluate(EvaluateConfig(run=str(front)), Console(quiet=True))
    told = read(front, "policy.json")["accuracies"]["report"]
    assert found["policy"] == pytest.approx(told["policy"]) and found["uniform"] == pytest.approx(told["uniform"])


def test_sixteen_budgets_by_gradients_are_one_optimisation(world, monkeypatch):
    starts, solve = [], fronts.solve_relaxation
    counted = lambda *arguments: starts.append(len(arguments[1])) or solve(*arguments)
    monkeypatch.setattr(fronts, "solve_relaxation", counted)
    budgets = [round(0.25 + 0.05 * n, 2) for n in range(16)]
    given = ",".join(map(str, reversed(budgets)))
    out = run(world / "sixteen", front="latency", budget=given, search="gradient", episodes=32)
    assert [entry["budget"]["fraction"] for entry in read(out)["policies"]] == pytest.approx(budgets)
    assert starts == [16]


@pytest.mark.parametrize("name", sorted(set(SEARCHERS) - {"random", "gradient", "haq"}))
def test_every_search_makes_a_front(world, name):
    out = run(world / f"front_{name}", front="bops", budget="0.3,2000K", search=name, episodes=8)
    limits = [entry["budget"]["bops"] for entry in read(out)["policies"]]
    assert limits == sorted(limits) and 2e6 in limits
    assert all(entry["costs"]["bops"] <= entry["budget"]["bops"] * (1 + 1e-6) for entry in read(out)["policies"])


def test_the_cheapest_accurate_policy_keeps_to_the_other_budget(world):
    drop = {"max_drop": 4, "search": "evolution", "episodes": 60}
    out = run(world / "drop", **drop)
    told = read(out, "policy.json")
    assert told["max_drop"] == 4 and told["budget"]["fraction"] is None and told["budget"]["latency_s"] is None
    searched = told["accuracies"]["search"]
    least = searched["float"] - 0.04
    assert searched["policy"] >= least - 1e-6
    evens = {bits: measure(jnp.full((4, 2), bits))[0] for bits in range(2, 9)}
    assert told["uniform_bits"] == min(bits for bits, accuracy in evens.items() if accuracy >= least)
    assert told["costs"]["policy"]["latency_s"] < told["costs"]["uniform"]["latency_s"]
    rows = list(csv.DictReader((out / "episodes.csv").read_text().splitlines()))
    enough = [float(row["latency_s"]) for row in rows if float(row["accuracy"]) >= least - 1e-6]
    assert told["costs"]["policy"]["latency_s"] == pytest.approx(min(enough))
    assert rows[0]["budget_latency_s"] == "" and float(rows[1]["budget_latency_s"]) > 0
    assert (out / "figures" / "front.png").is_file() and not (out / "front.json").exists()
    assert "least latency within 4 points of float" in (world / "drop.txt").read_text()
    limit = 0.95 * told["costs"]["policy"]["size_bytes"] / 1024
    other = run(world / "drop_size", **drop | {"max_drop": 12, "metric": "latency,size", "budget": f"{limit}KiB"})
    spent = read(other, "policy.json")["costs"]["policy"]
    assert spent["size_bytes"] <= limit * 1024 * (1 + 1e-6)


def stop_after(rounds):
    """Raises Ctrl-C in a later round."""
    usual, calls = loop.run_round, []

    def run_round(*arguments):
        calls.append(1)
        if len(calls) > rounds:
            raise KeyboardInterrupt
        return usual(*arguments)

    return run_round


@pytest.mark.parametrize("asked", [{"front": "energy", "budget": "0.5,0.3"}, {"max_drop": 20.0}], ids=["front", "drop"])
def test_a_stopped_front_or_drop_goes_on_as_if_it_had_not_stopped(world, asked, monkeypatch):
    name = next(iter(asked))
    options = asked | {"search": "haq", "episodes": 26}
    whole = run(world / f"whole_{name}", **options)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_round", stop_after(5))
        halted = run(world / f"halted_{name}", **options)
    assert read(halted, "policy.json")["interrupted"] and not read(whole, "policy.json")["interrupted"]
    shared = "was started with episodes 26, which are divided among its budgets: leave it out"
    with pytest.raises(ValueError, match=shared):
        run_search(SearchConfig.of(resume=str(halted), episodes=30), Console(quiet=True))
    with pytest.raises(ValueError, match=f"was started with {name}"):
        other = {"front": "size"} if name == "front" else {"max_drop": 1.0}
        run_search(SearchConfig.of(resume=str(halted), **other), Console(quiet=True))
    calls, usual = [], loop.run_round
    monkeypatch.setattr(loop, "run_round", lambda *arguments: calls.append(1) or usual(*arguments))
    run_search(SearchConfig.of(resume=str(halted)), Console(quiet=True))
    assert len(calls) == _rounds(whole) - 5
    for file in ("policy.json", "episodes.csv", *(["front.json", "front.csv"] if name == "front" else [])):
        assert (halted / file).read_text() == (whole / file).read_text()


def _rounds(folder):
    """Rounds of four policies, each budget's last one perhaps cut short."""
    rows = list(csv.DictReader((folder / "episodes.csv").read_text().splitlines()))
    limits = [row["budget_energy_j"] if "budget_energy_j" in row else row["budget_latency_s"] for row in rows]
    return sum(-(-limits.count(limit) // 4) for limit in set(limits) if limit)


BAD = [
    (["--front", "area"], "unknown front 'area': there are bops, energy, latency, memory, size"),
    (["--front", "latency", "--max-drop", "1"], "front 'latency' and max_drop 1 are two questions"),
    (["--front", "latency", "--metric", "size"], "a front of latency has no metric 'size'"),
    (["--front", "latency", "--episodes", "5"], "episodes is 5: a front of 8 budgets needs at least 8"),
    (["--front", "latency", "--budget", "0.5,0.5"], "names a limit of the front twice"),
    (["--front", "latency", "--budget", "0.5,3KiB"], "latency is measured in s, ms, us, ns, not KiB"),
    (["--front", "latency", "--budget", "0.5,0.001"], "is below the floor"),
    (
        ["--front", "latency", "--search", "haq", "--warm-start", "runs/x"],
        "warm_start is for a search within one budget",
    ),
    (["--front", "energy", "--hw", "bitfusion", "--layers", "*=8"], "a front of energy has no room"),
    (["--metric", "latency,size"], "metric 'latency,size' without a budget: a front is of one resource; give a budget"),
    (["--episodes", "4"], "a front of 8 budgets needs at least 8; give a budget, such as 0.6"),
    (["--search", "haq", "--race", "0.1"], "within one budget, without fine-tuning and the extension"),
    (["--patience", "-1"], "patience is -1"),
    (["--max-drop", "-1"], "max_drop is -1"),
    (["--max-drop", "nan"], "max_drop is nan"),
    (["--max-drop", "half"], "half"),
    (["--max-drop", "1", "--budget", "0.6"], "latency is what is to be cheap"),
    (["--max-drop", "1", "--metric", "latency,size"], "give a budget for size"),
    (["--max-drop", "1", "--metric", "latency,size", "--budget", "99B"], "size budget 0.09668 KiB is below the floor"),
    (["--max-drop", "1", "--episodes", "1"], "needs at least 2"),
    (["--max-drop", "1", "--metric", "size", "--search", "gradient"], "needs linear weights"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[" ".join(words) for words, _ in BAD])
def test_nonsense_is_one_line_and_leaves_nothing(world, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "the tests' own")
    monkeypatch.setattr(sys, "argv", ["haqjax", "search", "--model", "resnet20", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.err.count("\n") == 1 and message in said.err and not said.out
    assert not list(tmp_path.iterdir())


def test_without_a_budget_a_front_of_the_metric_is_searched(world):
    out = run(world / "plain", search="random", episodes=16, metric="bops")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["front"] == "bops" and config["budget"] is None
    told, policy = read(out), read(out, "policy.json")
    assert told["resource"] == "bops" and len(told["policies"]) == 8
    assert policy["front"] == {"resource": "bops", "named": told["named"], "rule": told["rule"]}
    chosen = told["policies"][told["named"]]
    assert policy["layers"] == chosen["layers"] and policy["budget"]["fraction"] == chosen["budget"]["fraction"]
    asked = run(world / "asked", search="random", episodes=16, front="bops")
    for file in ("front.json", "policy.json", "episodes.csv"):
        assert (asked / file).read_text() == (out / file).read_text()


def test_a_search_within_a_budget_finds_one_policy(world):
    out = run(world / "single", search="random", episodes=4, metric="bops", budget=0.6)
    assert read(out, "policy.json")["budget"]["fraction"] == 0.6
    assert "front" not in read(out, "policy.json")
    assert not (out / "front.json").exists()


@pytest.mark.parametrize(
    "search, why", [("ilp", "is expected to gain 0.1 standard errors, or"), ("greedy", "1 rounds brought")]
)
def test_a_front_ends_early_and_says_why(world, search, why):
    out = run(world / f"ends_{search}", search=search, episodes=160, patience=1)
    told, said = read(out, "policy.json"), (world / f"ends_{search}.txt").read_text()
    assert told["episodes_limit"] == 160 > told["episodes"] and read(out)["converged"] == told["converged"] is True
    assert f"Searched {told['episodes']} policies of at most 160: " in said and "PATIENCE=0 goes on" in said
    assert why in said


def test_a_front_that_was_stopped_ends_early_at_the_same_policy(world, monkeypatch):
    options = {"search": "ilp", "episodes": 96, "patience": 2}
    whole = run(world / "early_whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_round", stop_after(4))
        halted = run(world / "early_halted", **options)
    with pytest.raises(ValueError, match="was started with patience 2, which says when a budget is done: leave it out"):
        run_search(SearchConfig.of(resume=str(halted), patience=0), Console(quiet=True))
    run_search(SearchConfig.of(resume=str(halted)), Console(quiet=True))
    for file in ("policy.json", "episodes.csv", "front.json", "front.csv"):
        assert (halted / file).read_text() == (whole / file).read_text()


def test_a_search_that_ended_early_goes_on_without_patience(world):
    out = run(world / "converged", search="uniform", episodes=60, budget="0.6", patience=1)
    before = read(out, "policy.json")
    assert before["converged"] and before["episodes"] < 60
    run_search(SearchConfig.of(resume=str(out), patience=0), Console(quiet=True))
    after = read(out, "policy.json")
    assert after["episodes"] == 60 and not after["converged"]
    with pytest.raises(ValueError, match="was started with search 'uniform'"):
        run_search(SearchConfig.of(resume=str(out), search="random"), Console(quiet=True))
