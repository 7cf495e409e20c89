"""A network of the user, `MODEL=module:function`, goes through every command; what it returns is checked by name."""

import csv
import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import haqjax
from haqjax.data import Dataset, Split
from haqjax.evaluation import make_evaluator, measure_accuracy
from haqjax.evaluation.comparison import compare
from haqjax.models import OwnNetwork, load_own, own_data
from haqjax.run.commands.evaluate import run_evaluate
from haqjax.run.commands.finetune import run_finetune
from haqjax.run.commands.report import run_report
from haqjax.run.commands.search import run_search
from haqjax.run.commands.table import run_table
from haqjax.run.config.commands import EvaluateConfig, FinetuneConfig, ReportConfig, TableConfig, TrainConfig
from haqjax.run.config.search import SearchConfig

MODULE = '''
"""Tokens and numbers in, classes out: an embedding, a loop, a head; labels are the network's own answers."""
import jax, jax.numpy as jnp, numpy as np

random = np.random.default_rng(0)
sizes = {"table": (40, 8), "cell": (8, 8), "mix": (3, 8), "head": (8, 4)}
params = {name: jnp.asarray(random.normal(size=size) / 2, jnp.float32) for name, size in sizes.items()}
inputs = {
    "tokens": random.integers(0, 40, (300, 5)).astype(np.int32),
    "numbers": random.normal(size=(300, 3)).astype(np.float32),
}

def apply(params, x):
    h = params["table"][x["tokens"]].mean(1) + x["numbers"] @ params["mix"]
    h = jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ params["cell"]) + h, h)
    return h @ params["head"]

labels = np.asarray(apply(params, inputs).argmax(-1), np.int32)

def make():
    return {"apply": apply, "params": params, "data": (inputs, labels)}

def as_tuple():
    return apply, params, jax.tree.map(lambda leaf: leaf[:1], inputs)

def with_metric():
    return {"apply": apply, "params": params, "metric": None}

def with_nothing():
    return {"apply": apply}

def as_number():
    return 3

def not_callable():
    return 3, params

def fails():
    raise TypeError("no weights here")
'''


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with a module in it, as the working folder."""
    (tmp_path / "ownnet.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HAQJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "ownnet", raising=False)
    yield tmp_path
    sys.modules.pop("ownnet", None)


def test_a_network_of_ones_own_goes_through_every_command(world):
    said = io.StringIO()
    console = Console(file=said, width=120)
    options = dict(model="ownnet:make", hw="edge", budget="0.6", layers="table=2-8", episodes=8, out="run")
    folder = run_search(SearchConfig.of(**options), console)
    found = json.loads((folder / "policy.json").read_text())
    assert found["network"] == "ownnet:make" and [row["name"] for row in found["layers"]] == [
        "table",
        "mix",
        "cell",
        "head",
    ]
    assert "data: own" in (folder / "config.yaml").read_text()
    measured = run_evaluate(EvaluateConfig(str(folder)), console)
    assert measured["float"] == 1.0 and measured["policy"] == found["accuracies"]["report"]["policy"]
    tuned = run_finetune(FinetuneConfig(str(folder), epochs=1), console)
    assert tuned.is_dir()
    run_report(ReportConfig((str(folder),)), console)
    assert "table" in (folder / "report.html").read_text()
    run_table(TableConfig("costs.csv", model="ownnet:make"), console)
    rows = list(csv.DictReader((world / "costs.csv").read_text().splitlines()))
    assert len(rows) == 4 * 64 and float(rows[0]["latency_s"]) > 0
    with pytest.raises(ValueError, match="never overwritten"):
        run_table(TableConfig("costs.csv", model="ownnet:make"), console)


def test_make_returns_a_record_a_mapping_or_a_tuple(world):
    own = load_own("ownnet:make")
    assert isinstance(own, OwnNetwork) and own.name == "ownnet:make" and own.example is None
    data = own_data(own)
    assert (len(data.train), len(data.search), len(data.report), data.classes) == (180, 60, 60, 4)
    whole = np.concatenate([part.images["tokens"] for part in (data.train, data.search, data.report)])
    assert np.sort(whole, 0).tolist() == np.sort(own.data[0]["tokens"], 0).tolist()
    again = own_data(load_own("ownnet:make"))
    np.testing.assert_array_equal(again.report.images["tokens"], data.report.images["tokens"])
    assert load_own("ownnet:as_tuple").example["tokens"].shape == (1, 5)


@pytest.mark.parametrize(
    "function, message",
    [
        ("with_metric", "unknown 'metric': the fields are apply, params, example, data"),
        ("with_nothing", "no apply or no params"),
        ("as_number", "must return .* not int"),
        ("not_callable", "apply is 3"),
        ("fails", "cannot call 'ownnet:fails' without arguments: no weights here"),
        ("missing", "cannot call"),
    ],
)
def test_what_make_returns_wrongly_is_named(world, function, message):
    with pytest.raises(ValueError, match=message):
        load_own(f"ownnet:{function}")


def test_a_command_says_so_in_one_line_and_writes_nothing(world):
    command = [sys.executable, "-m", "haqjax", "search", "--model", "ownnet:as_tuple", "--data", "own", "--out", "run"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and not (world / "run").exists()
    assert ended.stderr.strip().splitlines()[-1] == (
        "haqjax: 'ownnet:as_tuple' returns no data: return them as `data`, or say which by DATA"
    )
    with pytest.raises(ValueError, match="model"):
        TrainConfig(model="ownnet:make")
    with pytest.raises(ValueError, match="data 'own' are those of a network of your own"):
        run_search(SearchConfig.of(model="resnet20", data="own", out="run"), Console(quiet=True))


def apply_linear(params, x):
    return x["left"] @ params["left"] + x["right"].reshape(len(x["right"]), -1) @ params["right"]


def draw(count):
    random = np.random.default_rng(1)
    left, right = random.normal(size=(count, 2)), random.normal(size=(count, 2, 2))
    return {"left": left.astype(np.float32), "right": right.astype(np.float32)}


PARAMS = {"left": jnp.asarray(draw(3)["left"].T), "right": jnp.asarray(draw(3)["right"].reshape(3, 4).T)}


@pytest.mark.parametrize("count", [16, 17])
def test_a_network_of_several_inputs_is_evaluated(count):
    x = draw(count)
    labels = np.asarray(apply_linear(PARAMS, x).argmax(-1), np.int32)
    ranges = haqjax.calibrate(apply_linear, PARAMS, [x], method="max")
    split = Split(x, labels)
    evaluator = make_evaluator(apply_linear, PARAMS, split, ranges, batch_size=5)
    found = evaluator(jnp.array([[[32, 32], [32, 32]], [[8, 8], [8, 8]], [[2, 2], [2, 2]]]))
    assert found.accuracy[0] == 1 and found.accuracy[1] > 0.8 and (found.loss[0] <= found.loss[2])
    assert measure_accuracy(apply_linear, PARAMS, split, batch_size=5).value == 1
    compared = compare(apply_linear, PARAMS, split, jnp.full((2, 2), 8), ranges)
    assert compared.images == count and compared.top_1[0] == 1 and (compared.noise > 20).all()


def test_data_in_parts_or_batches():
    x = draw(20)
    labels = np.arange(20, dtype=np.int64) % 3
    pair = x, labels
    network = OwnNetwork(apply_linear, PARAMS, name="mine:make")

    def made(data):
        return own_data(OwnNetwork(apply_linear, PARAMS, data=data, name="mine:make"))

    assert len(made({"train": pair, "search": pair, "report": pair}).search) == 20
    halves = [
        (jax.tree.map(lambda leaf: leaf[:10], x), labels[:10]),
        (jax.tree.map(lambda leaf: leaf[10:], x), labels[10:]),
    ]
    np.testing.assert_array_equal(made(iter(halves)).report.labels, made(pair).report.labels)
    ready = Dataset("ready", 3, *[Split(x, labels.astype(np.int32))] * 3)
    assert made(ready) is ready
    for bad, message in (
        ({"train": pair}, "data has train, expected train, search, report"),
        ([], "no pairs"),
        (7, "data is int"),
        ([(x, labels, 1)], "no pairs"),
        ({"train": pair, "search": pair, "report": x}, "data is dict, expected pairs"),
        ((jax.tree.map(lambda leaf: leaf[:3], x), labels[:3]), "3 examples cannot be cut"),
        ((x, labels + 2**32), "labels are not in 0"),
        (((np.ones((20, 3)), np.ones((20, 2))), labels), "apply.params, x. fails on its data"),
    ):
        with pytest.raises(ValueError, match=message):
            made(bad)
    two = [(jax.tree.map(lambda leaf: leaf[:10], x), labels[:10])] * 2
    assert len(made(tuple(two)).train) == 12
    with pytest.raises(ValueError, match="no whole number"):
        own_data(OwnNetwork(apply_linear, PARAMS, data=pair, classes="three"))
    with pytest.raises(ValueError, match="returns no data"):
        own_data(network)
    images = OwnNetwork(lambda params, x: x["left"], PARAMS, data=pair)
    assert own_data(images).classes == 2
    with pytest.raises(ValueError, match="expected logits"):
        own_data(OwnNetwork(lambda params, x: x["right"], PARAMS, data=pair))
