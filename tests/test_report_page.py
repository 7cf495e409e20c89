"""The page of a report: complete in itself, readable by all, and drawn by a browser without complaint."""

import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from haqjax.report.catalogue import PICTURES
from haqjax.report.interactive.layers import bits_chart, cost_chart
from haqjax.report.interactive.roofline import roofline_chart
from haqjax.report.interactive.search import policies_chart, search_chart
from haqjax.report.page import make_page
from haqjax.report.run_data import describe_layers, label_layers
from haqjax.run.commands.report import run_report
from haqjax.run.config.commands import ReportConfig
from haqjax.run.config.options import with_options
from haqjax.run.folder.run_data import read_run_data
from report_world import EPISODES, make_prepared, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STILL = b"<svg xmlns='http://www.w3.org/2000/svg'/>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    config, prepared = make_prepared(metric="latency,energy", budget="0.6,0.8")
    other = with_options(config, {"seed": 1})
    return write_run(base / "first", config, prepared), write_run(base / "second", other, prepared, seed=1)


@pytest.fixture(scope="module")
def run_data(folders):
    return read_run_data(folders[0])


def stills(runs):
    return {name: [STILL] * len(runs) for name in PICTURES} | {"runs": [STILL]}


class Page(HTMLParser):
    """The elements of a page, and the text of its cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        self.inside = None if tag in ("td", "th") else self.inside

    def handle_data(self, data):
        if self.inside in ("td", "th"):
            self.cells[-1] += data


def test_the_page_needs_nothing_beside_it(run_data):
    page = Page(make_page([run_data], stills([run_data])))
    asked = [link for _, a in page.tags for name in ("src", "href", "srcset", "action") if (link := a.get(name))]
    assert asked and all(link.startswith("data:") for link in asked)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "http" not in policy and "*" not in policy
    assert not any(tag == "link" for tag, _ in page.tags)


def test_the_page_fits_a_phone_and_tells_what_pictures_show(run_data):
    page = Page(make_page([run_data], stills([run_data])))
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert tables == sum(a.get("class") == "scroll" for _, a in page.tags) == 3


def test_tables_hold_the_numbers(run_data):
    cells = Page(make_page([run_data], stills([run_data]))).cells
    found = run_data.rows[2]
    assert f"{100 * found.accuracy:.1f} ± {100 * np.sqrt(found.accuracy * (1 - found.accuracy) / 100):.1f}" in cells
    ratio = found.cost.latency / run_data.rows[0].cost.latency
    assert any(cell.endswith(f"({ratio:.2f}x)") for cell in cells) and ratio <= 0.6
    wanted = {*run_data.layers.names, "0.10.2", "0123456789abcdef", "mobilenet_v1"}
    assert not wanted - set(cells)


def test_runs_side_by_side_show_what_differs(folders):
    runs = [read_run_data(folder) for folder in folders]
    text = make_page(runs, stills(runs))
    differing = re.findall(r'<tr class="differs"><th>(.*?) ≠</th>', text)
    assert "seed" in differing and "model" not in differing
    assert text.count("Plotly.newPlot(") - 1 <= 2 * len(PICTURES) + 1  # the library itself may name it once
    assert all(f'id="{name}-{at}"' in text for name in PICTURES for at in (0, 1)) and 'id="runs"' in text
    assert text.count("<figcaption>first</figcaption>") == len(PICTURES)


def test_names_are_text_and_never_code(run_data):
    evil = "<script>alert(1)</script>"
    layers = run_data.layers._replace(names=(evil, *run_data.layers.names[1:]))
    text = make_page(
        [dataclasses.replace(run_data, name=evil, title=evil, layers=layers, notes=(evil,))], stills([run_data])
    )
    assert evil not in text and html.escape(evil) in text


def test_bits_are_drawn_by_kind_weights_up_and_activations_down(run_data):
    figure, names = bits_chart(run_data), label_layers(run_data.layers)
    for axis, column in ((None, 0), ("y2", 1)):
        traces = [trace for trace in figure.data if trace.yaxis in (axis, "y" if axis is None else axis)]
        bars = {x: y for trace in traces for x, y in zip(trace.x, trace.y, strict=True)}
        assert [bars[name] for name in names] == run_data.policy[:, column].tolist()
        kinds = {trace.name: set(trace.x) for trace in traces}
        assert kinds["depthwise"] == {
            name for name, is_so in zip(names, run_data.layers.depthwise, strict=True) if is_so
        }
        assert kinds["not searched"] == {names[0], names[-1]}
    assert figure.layout.yaxis.range[0] < figure.layout.yaxis.range[1]
    assert figure.layout.yaxis2.range[0] > figure.layout.yaxis2.range[1]
    assert [note.text for note in figure.layout.annotations] == ["first", "last"]


def test_a_tensor_that_is_left_alone_stands_above_8(run_data):
    policy = run_data.policy.copy()
    policy[3] = 32
    axis = bits_chart(dataclasses.replace(run_data, policy=policy)).layout.yaxis
    assert dict(zip(axis.tickvals, axis.ticktext, strict=True))[10] == "32"


def test_a_layer_tells_its_numbers_when_pointed_at(run_data):
    text = describe_layers(run_data)[1]
    before, after = (1e6 * values[1] for values in run_data.layer_costs["latency"])
    assert run_data.layers.names[1] in text and f"latency {before:.3g} → {after:.3g} us" in text
    assert f"weights {run_data.policy[1, 0]} bits, activations {run_data.policy[1, 1]} bits" in text
    assert describe_layers(run_data)[0].count(", first") == 1 and ", last" in describe_layers(run_data)[-1]
    for figure in (bits_chart(run_data), cost_chart(run_data)):
        assert sum(text in (trace.hovertext or ()) for trace in figure.data) == 2 * (1 + (figure.data[0].width == 0.92))


def test_before_and_after_are_both_drawn(run_data):
    figure, names = cost_chart(run_data), label_layers(run_data.layers)
    for axis, name, scale in (("y", "latency", 1e-6), ("y2", "energy", None)):
        traces = [trace for trace in figure.data if trace.yaxis == axis]
        behind, front = traces[0], {x: y for trace in traces[1:] for x, y in zip(trace.x, trace.y, strict=True)}
        scale = scale or run_data.layer_costs[name].before[0] / behind.y[0]
        np.testing.assert_allclose(np.array(behind.y) * scale, run_data.layer_costs[name].before)
        np.testing.assert_allclose(np.array([front[x] for x in names]) * scale, run_data.layer_costs[name].after)


def test_a_roofline_has_each_layer_twice(run_data):
    marks = [trace for trace in roofline_chart(run_data).data if trace.mode == "markers"]
    assert sum(len(trace.x) for trace in marks) == 2 * len(run_data.layers.names)
    assert len({trace.marker.symbol for trace in marks}) == 3  # told apart without colours
    assert all("limited by" in said for trace in marks for said in trace.hovertext)


def test_a_search_without_a_policy_that_fits_is_drawn(run_data):
    episodes = run_data.episodes._replace(feasible=np.zeros(EPISODES, bool), best=np.full(EPISODES, np.nan))
    none = dataclasses.replace(run_data, episodes=episodes)
    assert {trace.name for trace in search_chart(none).data} >= {"over budget", "float network"}
    assert "policy" not in {trace.name for trace in policies_chart(none).data}


def test_the_budget_and_the_references_stand_where_they_are(run_data):
    figure = policies_chart(run_data)
    first = {trace.name: (trace.x, trace.y) for trace in figure.data if trace.yaxis == "y"}
    cost = run_data.rows[1].cost.latency
    assert first["best uniform"] == ((pytest.approx(1e3 * cost),), (pytest.approx(80.0),))
    assert figure.layout.shapes[0].x0 == pytest.approx(1e3 * run_data.budget["latency"])
    assert len(figure.layout.shapes) == 2  # one for each resource that is limited


def open_page(path, folder, *options):
    """What Chromium makes of a page: the document after its scripts have run, and what its console says."""
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    done = subprocess.run(
        [CHROMIUM, "--headless", "--disable-gpu", *quiet, *root, f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", "--virtual-time-budget=10000", *options, "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_a_browser_draws_every_figure_without_complaint(folders, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<script>nothing.there()</script>")
    assert len(open_page(bad, tmp_path)[1]) == 1  # an error would be seen
    page = run_report(ReportConfig(run=tuple(map(str, folders)), out=str(tmp_path / "out")), Console(quiet=True))
    dom, said = open_page(page, tmp_path, "--window-size=1400,900")
    assert said == []
    charts = 2 * len(PICTURES) + 1
    _, *parts = re.split(r'class="[^"]*js-plotly-plot', dom)
    assert len(parts) == charts
    for part in parts:
        assert len(re.findall(r'<svg class="main-svg"[^>]*width="[1-9]', part)) >= 2  # the drawing, what is above it
        assert re.search(r'<g class="trace (bars|scatter)', part)
    bits = re.search(r'<div id="bits-0".*?<figure>', dom, flags=re.DOTALL)[0]
    layers = len(json.loads((folders[0] / "policy.json").read_text())["layers"])
    assert len(re.findall(r'<g class="point">', bits)) == 2 * layers


def test_the_page_says_what_batch_the_costs_are_of(run_data):
    def said(*batches):
        runs = [dataclasses.replace(run_data, name=f"<{batch}>", batch=batch) for batch in batches]
        return make_page(runs, stills(runs))

    assert run_data.batch == 1 and "Latency and energy are of batches of 16 images." in said(16)
    assert "Latency and energy are of one batch: 1 images in &lt;1&gt;, 16 images in &lt;16&gt;." in said(1, 16)
    assert "Latency and energy are of" not in said(None)
