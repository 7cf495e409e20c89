"""Figures and tables show the numbers that they were given, readably."""

import importlib
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from haqjax.report import tables
from haqjax.report.static import layers as figures
from haqjax.report.static import search as progress
from haqjax.report.static import style
from haqjax.types import Cost


@pytest.mark.parametrize("name", ["layers", "roofline", "search"])
def test_every_interactive_figure_has_a_static_twin(name):
    interactive, static = (
        importlib.import_module(f"haqjax.report.{form}.{name}") for form in ("interactive", "static")
    )
    charts = [key for key in vars(interactive) if key.endswith("_chart")]
    assert charts and all(hasattr(static, key.replace("_chart", "_figure")) for key in charts)


def bars(axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def mobilenet_like(count: int, seed: int = 0):
    names = [f"blocks.{at // 3}.{('expand', 'depthwise', 'project')[at % 3]}.conv.kernel" for at in range(count)]
    policy = np.random.default_rng(seed).integers(2, 9, (count, 2))
    return names, policy, np.arange(count) % 3 == 1, np.isin(np.arange(count), (0, count - 1))


def test_bits_are_drawn_weights_up_and_activations_down():
    names, policy, depthwise, pinned = mobilenet_like(53)
    weights, activations = figures.bits_figure(names, policy, depthwise, pinned).axes
    assert bars(weights) == policy[:, 0].tolist()
    assert bars(activations) == policy[:, 1].tolist()
    assert not weights.yaxis_inverted() and activations.yaxis_inverted()


def test_kinds_of_layers_look_different_and_are_explained():
    policy = np.full((4, 2), 4)
    depthwise, pointwise, pinned = np.eye(4, dtype=bool)[:3]
    figure = figures.bits_figure(list("abcd"), policy, depthwise, pinned, pointwise=pointwise)
    looks = [(bar.get_facecolor(), bar.get_hatch()) for bar in figure.axes[0].patches]
    assert len(set(looks)) == 4
    lightness = [np.dot(color[:3], (0.299, 0.587, 0.114)) for color, hatch in looks if not hatch]
    assert min(abs(a - b) for a, b in pairwise(sorted(lightness))) > 0.15  # in a grey print as well
    assert legend(figure) == ["depthwise", "pointwise (1×1)", "other", "not searched"]


def test_a_kind_that_is_not_drawn_is_not_in_the_legend():
    figure = figures.bits_figure(["a", "b"], np.full((2, 2), 4), np.zeros(2, bool), np.zeros(2, bool))
    assert legend(figure) == ["other"]


def test_single_entries_can_be_pinned():
    pinned = np.array([[True, False], [False, True]])
    figure = figures.bits_figure(["a", "b"], np.full((2, 2), 4), np.zeros(2, bool), pinned)
    white = [[bar.get_facecolor() == to_rgba("white") for bar in axes.patches] for axes in figure.axes]
    assert white == [[True, False], [False, True]]


def test_activations_that_were_not_searched_take_no_room():
    pinned = np.array([[True, True], [False, True]])
    figure = figures.bits_figure(["a", "b"], np.array([[8, 32], [3, 32]]), np.zeros(2, bool), pinned)
    assert [bars(axes) for axes in figure.axes] == [[8, 3]]


def test_a_tensor_left_as_it_is_stands_above_8_and_is_called_32():
    figure = figures.bits_figure(["a", "b"], np.array([[8, 8], [3, 32]]), np.zeros(2, bool), np.zeros(2, bool))
    axes = figure.axes[1]
    assert (
        dict(zip(axes.get_yticks(), (t.get_text() for t in axes.get_yticklabels()), strict=True))[bars(axes)[1]] == "32"
    )
    assert bars(axes)[1] > 8


def test_different_lengths_are_an_error():
    with pytest.raises(ValueError, match=r"3 names, a policy \(2, 2\)"):
        figures.bits_figure(list("abc"), np.full((2, 2), 4), np.zeros(2, bool), np.zeros(2, bool))


@pytest.mark.parametrize("count", [1, 3, 28, 53, 54, 161])
def test_no_text_covers_another(count):
    figure = figures.bits_figure(*mobilenet_like(count), "MobileNet on bismo_edge")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    names = [label for label in figure.axes[-1].get_xticklabels() if label.get_text()]
    spans = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in names))
    assert all(left[1] <= right[0] for left, right in pairwise(spans))
    assert min(label.get_window_extent().y0 for label in names) >= 0
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1
    assert min(text.get_window_extent().y0 for text in figure.legends[0].get_texts()) > figure.axes[0].bbox.y1


def test_names_lose_the_end_that_all_share():
    shown = figures.bits_figure(["a.conv.kernel", "b.conv.kernel"], np.full((2, 2), 4), *np.zeros((2, 2), bool)).axes[1]
    assert [label.get_text() for label in shown.get_xticklabels()] == ["a", "b"]


def test_a_search_is_drawn_in_per_cent_with_its_references():
    accuracy, feasible = np.array([0.5, 0.9, 0.7, 0.8]), np.array([True, False, True, True])
    best = np.array([np.nan, np.nan, 0.7, 0.8])
    figure = progress.search_figure(accuracy, feasible, best, 0.95, 0.75)
    axes = figure.axes[0]
    fits, over = (points.get_offsets().tolist() for points in axes.collections)
    assert (fits, over) == ([[1, 50], [3, 70], [4, 80]], [[2, 90]])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * best)
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [95, 75]
    assert legend(figure)[2:] == ["best so far, 80.0 %", "float network, 95.0 %", "best uniform in the budget, 75.0 %"]


def test_a_search_in_which_nothing_fits_is_drawn():
    figure = progress.search_figure(np.array([0.5]), np.array([False]), np.array([np.nan]))
    FigureCanvasAgg(figure).draw()
    assert "best so far" in legend(figure)


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_ending_chooses_the_format(tmp_path, ending, start):
    assert style.save(Figure(figsize=(1, 1)), tmp_path / f"a.{ending}").read_bytes().startswith(start)


def test_a_figure_has_the_dots_that_print_needs(tmp_path):
    with Image.open(style.save(Figure(figsize=(style.WIDTH, 1)), tmp_path / "a.png")) as image:
        assert image.size == (2160, 300)


def test_standard_error_is_that_of_the_mean_of_rights_and_wrongs():
    right = np.arange(360) < 351
    assert tables.standard_error(351 / 360, 360) == pytest.approx(right.std() / np.sqrt(360))


ROWS = [
    tables.Row("8 bits", 0.9722, 540, Cost(0.02516, 0.0123, 23.1 * 2**20)),
    tables.Row("best uniform under the budget (5 bits)", 0.9611, 540, Cost(0.0142, np.nan, 14.3 * 2**20)),
    tables.Row("found policy", 0.9704, 540, Cost(0.01503, 0.0079, 15.3 * 2**20)),
]


def cells(rows) -> list[list[str]]:
    table = tables.comparison_table(rows)
    return [[str(column.header), *map(str, column.cells)] for column in table.columns]


def test_a_table_gives_figures_and_ratios_to_the_first_row():
    assert cells(ROWS)[1:] == [
        ["accuracy (%)", "97.2 ± 0.7", "96.1 ± 0.8", "97.0 ± 0.7"],
        ["latency (ms)", "25.16 (1.00x)", "14.20 (0.56x)", "15.03 (0.60x)"],
        ["energy (mJ)", "12.30 (1.00x)", "-", "7.90 (0.64x)"],
        ["size (MiB)", "23.10 (1.00x)", "14.30 (0.62x)", "15.30 (0.66x)"],
    ]


def test_a_machine_without_an_energy_model_has_no_column_for_it():
    rows = [row._replace(cost=row.cost._replace(energy=np.nan)) for row in ROWS]
    assert [column[0] for column in cells(rows)] == ["", "accuracy (%)", "latency (ms)", "size (MiB)"]


@pytest.mark.parametrize(
    ("latency", "header", "cell"),
    [
        (2.0, "latency (s)", "2.00"),
        (1e-3, "latency (ms)", "1.00"),
        (9.99e-4, "latency (us)", "999.00"),
        (3e-11, "latency (ns)", "0.03"),
    ],
)
def test_a_cost_is_given_in_the_unit_that_suits_it(latency, header, cell):
    assert cells([tables.Row("a", 0.5, 4, Cost(latency, np.nan, 1.0))])[2] == [header, f"{cell} (1.00x)"]


def test_text_keeps_to_its_width_and_says_everything():
    lines = tables.as_text(tables.comparison_table(ROWS, "ResNet-50")).splitlines()
    assert lines[0] == "ResNet-50"
    assert max(map(len, lines)) <= 100
    assert lines == [line.rstrip() for line in lines]
    assert any("found policy" in line and "15.30 (0.66x)" in line for line in lines)


def test_text_is_text_in_a_notebook_too(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "found policy" in tables.as_text(tables.comparison_table(ROWS))
