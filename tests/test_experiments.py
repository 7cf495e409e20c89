"""Experiments say what they do, stand beside figures that were published, and leave behind what they promise."""

import ast
import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import run_world

FOLDER = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(FOLDER))

import codesign  # noqa: E402
import common  # noqa: E402
import explain  # noqa: E402
import model_size  # noqa: E402
import options  # noqa: E402
import published  # noqa: E402
import results  # noqa: E402
import specialise  # noqa: E402

SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text())
GRADES = {"P": published.READ, "S": published.NOTES, "C": published.SIMULATED, "U": published.RECALLED}


def test_there_is_a_script_for_each_question():
    assert set(SCRIPTS) == {
        "specialise",
        "latency",
        "energy",
        "model_size",
        "transfer",
        "compare_searches",
        "explain",
        "codesign",
    }


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_tells_its_question_command_expectation_and_duration(name):
    doc = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert doc.splitlines()[0].partition("?")[1]
    assert doc.count(f"python experiments/{name}.py --quick") == 1
    for data in ("tfds:cifar10", "folder:../shared/data/imagenet", "tfds:imagenet2012"):
        assert f"--data {data}" in doc
    assert "Expected:" in doc and re.search(r"Takes \d+ minutes on 2\s+CPU cores", doc)


@pytest.mark.parametrize("name", SCRIPTS)
def test_options_that_a_docstring_names_are_options_of_its_script(name):
    script = importlib.import_module(name)
    known = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(script.Config)}
    assert set(re.findall(r"--[a-z-]+", script.__doc__)) <= known
    assert callable(script.main)


def test_quick_is_smaller():
    quick = specialise.Config(quick=True).small()
    assert quick.episodes < specialise.Config().episodes and quick.seeds == 1
    assert specialise.Config().small() == specialise.Config()


# What was published, beside the notes that it was taken from.


@pytest.fixture
def facts(shared):
    return (shared / "facts" / "haq.md").read_text()


def read_point(cell: str) -> tuple[float, float, set[str], set[str]]:
    """Accuracy, cost and the grades of both: `61.39 [S] at 52.15 [U]`; one grade at the end counts for both."""
    first, second = cell.split(" at ")
    grades = [set(re.findall(r"\[(\w)\]", part)) for part in (first, second)]
    return float(first.split()[0]), float(second.split()[0].split("[")[0]), grades[0] or grades[1], grades[1]


def same(point: published.Point, cell: str) -> bool:
    accuracy, spent, accuracy_grades, spent_grades = read_point(cell)
    return (
        (point.accuracy, point.cost) == (accuracy, spent)
        and point.accuracy_grade in {GRADES[grade] for grade in accuracy_grades}
        and point.cost_grade in {GRADES[grade] for grade in spent_grades}
    )


def test_published_latencies_are_those_of_the_notes(facts):
    lines = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in facts.splitlines() if line[:1] == "|"]
    head, *rows = [line for line in lines if len(line) == 5 and "---" not in line[0]]
    columns = [({"V1": "mobilenet_v1", "V2": "mobilenet_v2"}[name.split()[0]], name.split()[1]) for name in head[1:]]
    assert rows[0][0] == "8 fixed" and len(rows) == 7
    for place, cell in zip(columns, rows[0][1:], strict=True):
        assert same(published.EIGHT_BITS[place], cell)
    seen = set()
    for plain, found in zip(rows[1::2], rows[2::2], strict=True):
        bits = int(plain[0].split()[0])
        assert plain[0].endswith("PACT") and found[0].startswith("HAQ")
        for place, *cells in zip(columns, plain[1:], found[1:], strict=True):
            seen.add((*place, bits))
            assert all(map(same, published.LATENCY[*place, bits], cells))
    assert seen == set(published.LATENCY)


def test_other_published_figures_are_those_of_the_notes(facts):
    line = re.search(r"^Specialisation.*\[P\]: (.*)$", facts, re.MULTILINE)[1]
    for hw in published.MACHINES:
        told = re.search(rf"for {hw.replace('bitfusion', 'BitFusion')} ([\d. /]+\d)", line)[1]
        assert published.SPECIALISED[hw] == tuple(map(float, told.split(" / ")))
    energy = re.search(r"^BitFusion, MobileNet-V1 \[S\]: .*$", facts, re.MULTILINE)[0]
    eight = published.ENERGY_8_BITS
    assert f"8/8 {eight.accuracy:.2f} at 20.08 ms, {eight.cost:.2f} mJ" in energy
    assert all(f"{point.accuracy:.2f} at {point.cost:.2f} mJ" in energy for point in published.ENERGY)
    size = re.search(r"^Model size.*?(?=Released)", facts, re.MULTILINE | re.DOTALL)[0]
    for plain, found in published.SIZE.values():
        assert f"{found.accuracy:.2f} at {found.cost:.2f}" in size and found.accuracy_grade == published.NOTES
        assert plain is None or f"(DC {plain.accuracy:.2f})" in size


def test_the_weaker_grade_is_told():
    point = published.Point(61.39, 52.15, published.NOTES, published.RECALLED)
    assert published.format_point(point) == "61.39 at 52.15 (recalled)"
    assert published.format_point(None) == ""


# Whole runs, with a network of four layers in the place of the zoo's.


@pytest.fixture
def tiny(monkeypatch):
    def named(model: str):
        return dataclasses.replace(run_world.make_network(), name=model)

    monkeypatch.setattr(common, "open_network", lambda network, data: (named(network.model), run_world.make_data()))
    monkeypatch.setattr(common, "load_network", lambda network, *rest: network)
    monkeypatch.setattr(common, "outline", lambda model, **size: named(model))


def read(folder: Path) -> tuple[list[dict], str]:
    told = json.loads((folder / "records.json").read_text())
    assert told["device"] and told["commit"] and told["versions"]["jax"] and told["config"]["episodes"] == 8
    return told["records"], (folder / "table.md").read_text()


def test_specialise_costs_every_policy_on_every_machine(tiny, tmp_path):
    out = tmp_path / "run"
    main_told = specialise.main(specialise.Config(out=str(out), episodes=8, seeds=2))
    records, text = read(out)
    assert [(r["seed"], r["found_for"]) for r in records] == [(s, hw) for s in range(2) for hw in specialise.MACHINES]
    subject = common.prepare(specialise.Config(), "mobilenet_v1")
    for record in records:
        assert record["latency"][record["found_for"]] <= record["budget"] * (1 + 1e-6)
        for hw, seconds in record["latency"].items():
            table = common.make_table(subject, hw).latency
            each = [table[at, w - 1, a - 1] for at, (w, a) in enumerate(record["policy"])]
            assert seconds == pytest.approx(float(sum(each)), rel=1e-6)
    assert ("Diagonal-best" in text) == main_told["diagonal_best"]
    for hw, times in published.SPECIALISED.items():
        assert re.search(rf"^\| {hw} \|.*\| {' / '.join(f'{t:.2f}' for t in times)} \(read\) \|$", text, re.MULTILINE)
    assert "120 images to train on" in text and {"specialise.png", "specialise.svg"} <= {p.name for p in out.iterdir()}


def test_a_second_run_never_overwrites(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="never overwritten"):
        specialise.main(specialise.Config(out=str(tmp_path / "run"), episodes=8))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_policy_that_is_faster_and_as_accurate_beats_a_machines_own():
    def record(hw, ms, accuracy, seed=0):
        latency = dict(zip(specialise.MACHINES, ms, strict=True))
        return {"found_for": hw, "seed": seed, "latency": latency, "accuracy": accuracy, "loss": 1.0}

    own = [record("bitfusion", (1, 9, 9), 0.9), record("edge", (2, 2, 9), 0.9), record("cloud", (2, 9, 3), 0.9)]
    assert specialise.find_beaten(own) == []
    assert (
        specialise.find_beaten([*own, record("edge", (2, 3, 9), 0.9, seed=1)]) == []
    )  # its own machine does not count
    beaten = specialise.find_beaten([*own, record("edge", (0.5, 3, 1), 0.9, seed=1)])
    assert [(b["machine"], b["by"], b["by_seed"]) for b in beaten] == [("bitfusion", "edge", 1), ("cloud", "edge", 1)]
    assert beaten[0]["faster"] == 0.5
    assert specialise.find_beaten([*own, record("edge", (0.5, 3, 1), 0.89, seed=1)]) == []  # less accurate


def test_searched_codebooks_take_no_more_room_than_uniform_ones(tiny, tmp_path):
    config = model_size.Config(out=str(tmp_path / "run"), models=("mobilenet_v1",), bits=(2,), episodes=8, seeds=1)
    model_size.main(config)
    (whole, plain, found), text = read(tmp_path / "run")
    weights = sum(np.size(leaf) for leaf in run_world.make_network().params.values())
    assert whole["size"] == 4 * weights and plain["size"] == weights / 4 and found["size"] <= plain["size"]
    assert plain["policy"] == [2] * 4
    assert "37.62 at 1.09 (notes)" in text and "57.14 at 1.09 (notes)" in text


def test_machines_that_are_chosen_keep_to_their_area(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(codesign, "SIZES", codesign.QUICK_SIZES)
    config = codesign.Config(out=str(tmp_path / "run"), episodes=8, seeds=1, place=0.5)
    told = codesign.main(config)
    records, text = read(tmp_path / "run")
    assert told["machines"] == 36
    assert [r["name"] for r in records] == ["edge alone", "together, area 1", "together, area 0.5"]
    for record, most in zip(records, (1, 1, 0.5), strict=True):
        bits = 2 * record["array"] * record["buffer_words"] * record["dot_bits"]
        area = record["array"] ** 2 * record["dot_bits"] + 0.02 * bits + 50 * 2 * record["port_bits"]
        assert record["area"] == pytest.approx(area / (64 * 256 + 0.02 * 2 * 8 * 1024 * 256 + 50 * 128))
        assert record["area"] <= most and record["latency"] <= records[0]["latency"] * 2
    assert "no published figures" in text


def test_a_claim_holds_where_every_seed_points_its_way():
    def record(hw, seed, *bits):
        names = [f"{kind}_{column}" for kind in explain.KINDS for column in explain.COLUMNS]
        return {"machine": hw, "seed": seed} | dict(zip(names, bits, strict=True))

    records = [
        record("edge", 0, 4, 3, 5, 5),
        record("edge", 1, 4, 5, 5, 5),
        record("cloud", 0, 8, 6, 4, 5),
        record("cloud", 1, 8, 6, 4, 4),
    ]
    holds = [holds for _, holds, _ in explain.check_claims(records)]
    assert holds == [False, True, True, True, True]  # the second seed's depthwise layers have as many on the edge
    fewer, *_ = explain.check_claims(records)
    assert fewer[2] == "by 1.00 ± 1.41 bits"


# The command line.


@pytest.mark.parametrize(
    "words, named",
    [
        (["--episods", "3"], "--episods"),
        (["--seeds", "some"], "some"),
        (["--searcher", "guess"], "guess"),
        (["--model", "vgg"], "vgg"),
        (["--seeds", "0"], "seeds 0"),
        (["--data", "pictures", "--weights", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["specialise.py", "--out", str(tmp_path / "run"), *words])
    monkeypatch.setattr(options, "keep_compiled_programs", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        options.launch(specialise.main, specialise.Config, specialise.__doc__)
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert named in said.err and len(said.err.splitlines()) == 1 and not said.out
    assert list(tmp_path.iterdir()) == []


def test_a_table_is_markdown_and_a_spread_is_over_seeds():
    assert results.as_markdown(("a", "b"), [("c", "1")]) == "| a | b |\n| --- | ---: |\n| c | 1 |"
    assert results.format_mean([0.5], 100) == "50.0"
    assert results.format_mean([0.4, 0.6], 100) == "50.0 ± 14.1"


def test_the_place_of_a_limit():
    cost = SimpleNamespace(low=np.array([[1, 1]]), high=np.array([[8, 8]]))
    table = common.CostTable(*(np.arange(64.0).reshape(1, 8, 8) for _ in range(3)), fixed=common.Cost(0.0, 0.0, 0.0))
    assert [float(common.limit_between(table, cost, place)) for place in (0, 0.5, 1)] == [0, 31.5, 63]
