"""Names of layers, runs, machines and files are text wherever they come out, whatever letters they have."""

import dataclasses
import html
import io
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.text import Text
from plotly.offline import get_plotlyjs
from rich.console import Console

from haqjax.hardware import cost_table, machine, save_table
from haqjax.hardware.machines import FOLDER
from haqjax.report.catalogue import PICTURES, chart_runs, draw_runs
from haqjax.report.names import as_cell, as_html, as_label, as_plotly, name_apart
from haqjax.report.page import make_page
from haqjax.report.run_data import label_layers
from haqjax.report.static.roofline import latency_figure, limits_figure
from haqjax.report.static.style import as_bytes
from haqjax.report.tables import Row, as_text, comparison_table
from haqjax.run.commands.hardware import run_hardware
from haqjax.run.commands.report import run_report
from haqjax.run.commands.table import run_table
from haqjax.run.config.commands import HardwareConfig, ReportConfig, TableConfig
from haqjax.run.folder.run_data import read_run_data
from haqjax.run.terminal import make_warner, say
from haqjax.text import escape
from haqjax.types import Cost
from references_hardware import dense, table
from report_world import make_prepared, write_run

NASTY = [
    "$x^2$",
    "$\\input{/etc/passwd}$",
    "\\$5",
    "$",
    "_hidden_",
    "a^{b}_c",
    "100 % {0} %(x)s %{y}",
    "<script>alert(1)</script>",
    "<b>bold</b><br>",
    '<a href="javascript:alert(1)">x</a>',
    "&lt;&#36;&amp;",
    "]]>--><!--",
    "[bold red]x[/bold red]",
    "[/nothing]",
    ":smile:",
    "first\nsecond\r\n",
    "\x1b[2J\x1b]0;title\x07",
    "\x00\x08\x7f\x9b",
    "\u202egnp.elif\u2066",
    "\u2028\ufeff\ufffe",
    "lone \udc80 surrogate",
    "x" * 5000,
    "",
    " ",
    "|a|b|",
    'quote " and , comma',
    "=1+1",
    "é ü ß Ω",
]


def test_the_letters_of_a_name_are_printable_and_few():
    for name in NASTY:
        assert escape(name).isprintable() and len(escape(name)) <= 200
        assert name.isprintable() and len(name) <= 200 or escape(name) != name
    assert escape("blocks.0.depthwise é") == "blocks.0.depthwise é"


@pytest.mark.parametrize("name", NASTY)
def test_each_way_of_writing_a_name_says_the_name(name):
    assert not is_math_text(as_label(name)) and as_label(name).replace(r"\$", "$").strip() == escape(name, 120).strip()
    assert html.unescape(as_plotly(name)) == escape(name) and not set("<>$") & set(as_plotly(name))
    assert html.unescape(as_html(name)) == escape(name, 2000) and not set("<>\"'") & set(as_html(name))
    assert as_cell(name).plain == escape(name)


def test_matplotlib_draws_a_label_and_reads_no_mathematics():
    for name in NASTY:
        text = Text(0, 0, as_label(name))
        shown, is_math = text._preprocess_math(text.get_text())
        assert not is_math and shown.strip() == escape(name, 120).strip()


@pytest.fixture(scope="module")
def run_data(tmp_path_factory):
    found = read_run_data(write_run(tmp_path_factory.mktemp("runs") / "first", *make_prepared()))
    names = (*NASTY, *found.layers.names[len(NASTY) :])[: len(found.layers.names)]
    return dataclasses.replace(found, layers=found.layers._replace(names=names), notes=tuple(NASTY))


def named(run_data, name):
    return dataclasses.replace(run_data, name=name, title=name, configuration={name: name})


@pytest.mark.parametrize("key", [*PICTURES, "runs", "latency", "limits"])
def test_figures_for_paper_are_well_formed_and_hold_names_as_text(run_data, key):
    flags = np.array([True, False])
    drawn = {
        "runs": lambda: draw_runs([named(run_data, name) for name in NASTY if name]),
        "latency": lambda: latency_figure({NASTY[0]: np.array([0.3, 0.7])}, flags, ~flags, NASTY[0]),
        "limits": lambda: limits_figure(np.array([2.0, 9.0]), np.array([1e9, 4e9]), 5e9, 1e9, flags, ~flags, NASTY[1]),
    }.get(key, lambda: PICTURES[key].static(named(run_data, "".join(NASTY[:9]))))()
    picture = as_bytes(drawn, "svg")
    ElementTree.fromstring(picture)
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", picture)
    labels = [text.get_text() for text in drawn.findobj(Text)]
    outside = [label for label in labels if not label.startswith("$\\mathdefault")]  # ours: powers of ten
    assert not any(is_math_text(label) for label in outside)
    assert key not in ("bits", "costs") or as_label(NASTY[4]) in " ".join(labels)


def test_a_run_whose_name_begins_with_an_underscore_is_in_the_legend(run_data):
    figure = draw_runs([named(run_data, "_a"), named(run_data, "b")])
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["_a", "b"]


def test_tex_is_not_run_on_names_whatever_the_user_has_set(run_data):
    with matplotlib.rc_context({"text.usetex": True}):
        assert as_bytes(PICTURES["bits"].static(named(run_data, NASTY[1])), "svg").startswith(b"<?xml")


def test_figures_for_a_screen_hold_names_as_text(run_data):
    several = [named(run_data, name) for name in NASTY]
    charts = [picture.interactive(run_data) for picture in PICTURES.values()] + [chart_runs(several)]
    for chart in charts:
        text = chart.to_json()
        assert text.isascii() or all(letter.isprintable() for letter in text)
        said = [str(each) for trace in chart.data for each in (trace.name, *(trace.hovertext or ()))]
        tags = set(re.findall(r"<[^>]*>", " ".join(said)))
        assert tags <= {"<b>", "</b>", "<br>", "<i>", "</i>"}  # ours
    names = list(charts[0].layout.xaxis.categoryarray)
    assert [html.unescape(name) for name in names] == [escape(name) for name in label_layers(run_data.layers)]
    assert {html.unescape(trace.name) for trace in charts[-1].data} == {escape(name, 60) for name in NASTY}


def test_the_page_holds_names_as_text(run_data):
    runs = [named(run_data, "".join(NASTY[at::4])) for at in range(4)]
    stills = {key: [b"<svg/>"] * len(runs) for key in PICTURES} | {"runs": [b"<svg/>"]}
    page = make_page(runs, stills).replace(get_plotlyjs(), "")
    assert all(letter.isprintable() for letter in page.replace("\n", ""))
    for name in ("<script>alert", "<b>bold", '<a href="java'):
        assert name not in page and html.escape(name) in page
    cells = [html.unescape(cell) for cell in re.findall(r'<th scope="row">\d+</th><td>(.*?)</td>', page)]
    assert cells[: len(runs[0].layers.names)] == [escape(name, 2000) for name in runs[0].layers.names]


def test_tables_on_a_terminal_hold_names_as_text():
    rows = [Row(name, 0.5, 10, Cost(1.0, 1.0, 1.0)) for name in NASTY]
    for name in NASTY:
        text = as_text(comparison_table([rows[0]], name), 300)
        assert all(line.isprintable() for line in text.splitlines())
        assert "".join(escape(name).split()) in "".join(text.split())  # a long one goes over several lines
    said = io.StringIO()
    Console(file=said, width=400, force_terminal=True).print(comparison_table(rows))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())  # the style of our own words
    assert all(line.isprintable() for line in shown.splitlines())
    assert all(escape(name) in shown for name in NASTY)


def test_lines_on_a_terminal_hold_names_as_text(capsys):
    said = io.StringIO()
    say(Console(file=said, width=80), *NASTY)
    assert said.getvalue() == "".join(f"{escape(name, 2000)}\n" for name in NASTY)
    show = make_warner()
    for name in (*NASTY, *NASTY):
        show(UserWarning(f"about {name}"), UserWarning, "file", 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= len(NASTY) and len(set(lines)) == len(lines)
    assert all(line.startswith("haqjax: warning: about") and line.isprintable() and len(line) <= 500 for line in lines)


@pytest.mark.parametrize("name", NASTY)
def test_machines_that_are_not_there_are_named_in_one_line(name):
    with pytest.raises(ValueError, match="unknown machine|is a folder") as error:
        machine(name)
    assert str(error.value).isprintable() and len(str(error.value)) <= 500


@pytest.mark.parametrize("ending", ["csv", "npy", "parquet"])
def test_layers_of_any_name_come_back_from_a_table(ending, tmp_path):
    names = [name for name in NASTY if "\udc80" not in name and name.strip()]
    layers = dataclasses.replace(table([dense(4, 3 + at) for at in range(len(names))]), names=tuple(names))
    made = cost_table(machine("edge"), layers)
    save_table(tmp_path / f"t.{ending}", made, layers, 1)
    read = cost_table(machine(tmp_path / f"t.{ending}"), layers)
    np.testing.assert_array_equal(read.latency, made.latency)
    np.testing.assert_array_equal(read.energy, made.energy)


@pytest.mark.parametrize(("names", "message"), [(("a", " a"), "'a' and ' a' apart"), (("\udc80", "b"), "no UTF-8")])
def test_layers_that_a_table_cannot_name_are_refused_before_it_is_written(names, message, tmp_path):
    layers = dataclasses.replace(table([dense(4, 3), dense(3, 2)]), names=names)
    with pytest.raises(ValueError, match=message) as error:
        save_table(tmp_path / "t.csv", cost_table(machine("edge"), layers), layers)
    assert not list(tmp_path.iterdir()) and str(error.value).isprintable()


OWN = """
import jax
SHAPES = {"$a[bold]\\x1b[2J<b>": (5, 3), "b\\n[/x]": (3, 2)}

def network():
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in SHAPES.items()}
    first, second = params
    return lambda params, x: (x @ params[first]) @ params[second], params, jax.ShapeDtypeStruct((1, 5), "float32")
"""


def test_commands_take_any_name_of_a_layer_a_machine_and_a_folder(tmp_path, monkeypatch):
    (tmp_path / "nasty_network.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    own = "[\\x]$\\frac\x1b" + "y" * 100 + ".yaml"
    (tmp_path / own).write_text((FOLDER / "bismo_edge.yaml").read_text())
    said = io.StringIO()
    console = Console(file=said, width=80)
    run_table(TableConfig(out="[bold]t.csv", model="nasty_network:network", hw=own), console)
    config = HardwareConfig(model="nasty_network:network", hw=(own, "edge"), out="[!figures]")
    run_hardware(config, console)
    lines = said.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    for text in ("[bold]t.csv", "$a[bold]\\x1b[2J<b>", "b\\n[/x]", "[\\x]$\\frac\\x1b", "[!figures]"):
        assert any(text in line for line in lines)
    assert len(list((tmp_path / "[!figures]").iterdir())) == 6


def test_a_run_folder_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.setattr("haqjax.run.commands.report.as_bytes", lambda figure, ending: b"<svg/>")
    folders = [tmp_path / ("$[!b]<i>\x1b\n" + letter * 200) for letter in "xy"]
    prepared = make_prepared()
    for folder in folders:
        write_run(folder, *prepared)
    said = io.StringIO()
    run_report(ReportConfig(run=tuple(map(str, folders)), out=str(tmp_path / "out")), Console(file=said))
    assert all(line.isprintable() for line in said.getvalue().splitlines())
    assert "<i>" not in (tmp_path / "out" / "report.html").read_text().partition("</script>")[2].partition("<div")[0]
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 2 * (2 * len(PICTURES) + 1)


def test_names_of_files_differ_and_are_short():
    names = name_apart([*NASTY, "x" * 5001, "é" * 300, "é" * 301])
    assert len(set(names)) == len(names) and all(len(name.encode()) <= 110 and "/" not in name for name in names)
