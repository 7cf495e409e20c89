"""The table command: a file that a search can be run on, for any network."""

import io
import sys
import warnings

import numpy as np
import pytest
from rich.console import Console

from haqjax.cli import main
from haqjax.hardware import cost_table, machine
from haqjax.hardware.machines import FOLDER
from haqjax.models import outline
from haqjax.run import HardwareConfig, SearchConfig, TableConfig, run_hardware, run_table
from haqjax.run.setup import prepare
from haqjax.tracing.layer_table import layers

OWN = """
import jax

def network():
    shape = jax.ShapeDtypeStruct((5, 3), "float32")
    return lambda params, x: x @ params["w"], {"w": shape}, jax.ShapeDtypeStruct((1, 5), "float32")

def number():
    return 3

def floats():
    return network()[0], {"w": 3.0}, network()[2]
"""


@pytest.mark.parametrize("ending", ["csv", "npy"])
def test_a_written_table_reads_back_as_the_machine_that_made_it(ending, tmp_path):
    out = run_table(
        TableConfig(out=str(tmp_path / f"table.{ending}"), model="resnet20", image_size=32, classes=10),
        Console(quiet=True),
    )
    network = outline("resnet20", classes=10, image_size=32)
    table_of = layers(network.apply, network.params, network.example)
    read, made = (cost_table(m, table_of) for m in (machine(out), machine("edge")))
    np.testing.assert_allclose(read.latency, made.latency, rtol=1e-12)
    np.testing.assert_allclose(read.energy, made.energy, rtol=1e-12)
    np.testing.assert_array_equal(read.size, made.size)


def test_a_search_is_prepared_on_a_table_and_refuses_that_of_another_network(tmp_path):
    out = run_table(
        TableConfig(out=str(tmp_path / "t.csv"), model="resnet20", image_size=32, classes=10), Console(quiet=True)
    )
    edge, own = (prepare(SearchConfig.of(model="resnet20", hw=hw, budget="0.6")) for hw in ("edge", str(out)))
    np.testing.assert_allclose(own.budget.latency, edge.budget.latency, rtol=1e-6)
    with pytest.raises(ValueError, match="the table has no layer"):
        prepare(SearchConfig.of(model="resnet56", hw=str(out)))


def test_a_function_of_the_user_s_is_a_network(tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    run_table(TableConfig(out="own.csv", model="own_network:network", hw="cloud"), Console(quiet=True))
    lines = (tmp_path / "own.csv").read_text().splitlines()
    assert len(lines) == 1 + 64 and lines[1].startswith("w,")
    monkeypatch.delitem(sys.modules, "own_network")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model="resnet18"), "unknown model 'resnet18': there are mobilenet_v1"),
        (dict(model="no_such_module:network"), "cannot call 'no_such_module:network' without arguments"),
        (dict(model="own_network:number"), "'own_network:number' must return"),
        (dict(model="own_network:floats"), "must return arrays as params, not 3.0"),
        (dict(model="absent\n:network"), r"cannot call 'absent\\n:network' without arguments"),
        (dict(out="no/such/e.csv"), "no/such/e.csv cannot be written: no/such is no folder that can be written to"),
        (dict(hw="own_machine.yaml"), "own_machine: energy_j of layer 'stem' at 1/1 bits"),
        (dict(hw="edge\n"), r"unknown machine edge\\n; there are"),
        (dict(model="own_network:absent"), "cannot call 'own_network:absent'"),
        (dict(hw="tpu9"), "unknown machine tpu9"),
        (dict(out="table.txt"), "table"),
        (dict(out="own_network.py"), "exists and is never overwritten"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(changes, message, tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(OWN)
    (tmp_path / "own_machine.yaml").write_text((FOLDER / "roofline.yaml").read_text().replace("0.031e-12", "1e30"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    with pytest.raises(ValueError, match=message):
        run_table(TableConfig(**(dict(out="t.csv", model="resnet20", image_size=32) | changes)), Console(quiet=True))
    assert [path.name for path in tmp_path.iterdir() if path.name[:3] != "own"] in ([], ["__pycache__"])


def test_hardware_says_what_limits_each_layer_and_draws_it(tmp_path):
    said = io.StringIO()
    config = HardwareConfig(model="mobilenet_v1", hw=("edge", "bitfusion"), out=str(tmp_path / "figures"))
    run_hardware(config, Console(file=said, width=80))
    lines = said.getvalue().splitlines()
    rows = {
        machine: [line.split() for line in part] for machine, part in _parts(lines, ("bismo_edge", "bitfusion")).items()
    }
    for machine_rows in rows.values():
        layers_of = [row for row in machine_rows if len(row) == 10 and row[2].endswith("%")]
        assert len(layers_of) == 28
        for column in (2, 6):
            assert sum(float(row[column][:-1]) for row in layers_of) == pytest.approx(100, abs=1.5)
        assert {row[1] for row in layers_of} == {"conv", "depthwise", "pointwise", "dense"}
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    figures = ("latency", "roofline-4bits", "roofline-8bits")
    assert drawn == [f"{name}-{figure}.png" for name in ("bismo_edge", "bitfusion") for figure in figures]


def _parts(lines, names):
    starts = [next(i for i, line in enumerate(lines) if f" on {name}:" in line) for name in names]
    return {name: lines[a:b] for name, a, b in zip(names, starts, [*starts[1:], None], strict=True)}


def test_hardware_refuses_a_measured_table(tmp_path):
    out = run_table(TableConfig(out=str(tmp_path / "t.csv"), model="mobilenet_v1"), Console(quiet=True))
    with pytest.raises(ValueError, match="measured table"):
        run_hardware(HardwareConfig(model="mobilenet_v1", hw=(str(out),)), Console(quiet=True))


def test_a_warning_of_a_table_is_one_line_on_standard_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "one_layer.py").write_text(OWN)
    head = "layer,batch,weight_bits,activation_bits,latency_ms\n"
    (tmp_path / "[b]t.csv").write_text(head + "w,16,8,8,1\nw,16,4,8,2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept")  # so that the command leaves JAX's settings alone
    options = ["--model", "one_layer:network", "--hw", "[b]t.csv", "--out", "again.csv"]
    monkeypatch.setattr(sys, "argv", ["haqjax", "table", *options])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        main()
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "haqjax: warning: [b]t.csv: latency falls with more weight bits in 1 places, first in layer 'w' at 8/8 bits "
        "(weights/activations); a search assumes it rises",
        "haqjax: warning: [b]t.csv: latency and energy are of batches of 16 images",
    ]
    assert said.out == "1 layers of one_layer:network on [b]t: again.csv\n"
    assert (tmp_path / "again.csv").read_text().splitlines()[1].startswith("w,1x1,1x1,5,3,1,1x1,16,1,1,")
    monkeypatch.delitem(sys.modules, "one_layer")
