"""Page of a report: one HTML file that needs nothing beside it."""

import base64
import importlib.metadata
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from haqjax.report.catalogue import PICTURES, chart_runs
from haqjax.report.names import as_html
from haqjax.report.run_data import RunData, layer_kinds
from haqjax.report.tables import comparison_columns
from haqjax.types import ACTIVATION, WEIGHT
from haqjax.units import unit_of

CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,  # nothing leaves the page
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "svg"},
}
COLUMN, GAP, MOST = 34, 6, 3  # rem: the least width of a figure beside others; what is between; columns of the page


def make_page(runs: Sequence[RunData], stills: Mapping[str, Sequence[bytes | None]]) -> str:
    """Writes a report of some runs as HTML.

    Args:
      runs: at least one.
      stills: each figure as SVG, for print: by a key of `PICTURES`, an entry a run, or by "runs", one entry.

    Returns:
      The page, the same for the same runs and versions.
    """
    several, names = len(runs) > 1, [run_data.name for run_data in runs]
    title = "Runs side by side" if several else runs[0].title
    parts = [_section("Result", _result(runs))]
    if several:
        text = "The best accuracy so far of each search, and its front, on the search split."
        together = _figure("runs", "", chart_runs(runs), stills["runs"][0], text)
        parts.append(_section("Runs together", f"<p>{text}</p>{together}" if together else ""))
    for key, picture in PICTURES.items():
        figures = [
            _figure(f"{key}-{at}", name if several else "", picture.interactive(run_data), still, picture.title)
            for at, (name, run_data, still) in enumerate(zip(names, runs, stills[key], strict=True))
        ]
        if any(figures):
            drawn = f'<p>{picture.caption}</p><div class="side">{"".join(figures)}</div>'
            parts.append(_section(picture.title, drawn))
    parts.append(_section("Layers", "".join(_layer_table(run_data, len(runs) > 1) for run_data in runs)))
    parts.append(_section("Configuration, versions, seeds", _configuration(runs)))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("haqjax", "plotly", "matplotlib"))
    page = Template(resources.files("haqjax.report").joinpath("page.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=as_html(title),
        lead="".join(_lead(run_data, several) for run_data in runs),
        body="\n".join(parts),
        plotly=get_plotlyjs(),
        width=f"{(COLUMN + GAP) * max(2, min(len(runs), MOST))}rem",
        column=f"{COLUMN}rem" if several else "100%",
        footer=f"Written by {versions}.",
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def _lead(run_data: RunData, several: bool) -> str:
    name = f"{run_data.name}: {run_data.title}" if several else f"Run folder {run_data.name}"
    notes = "".join(f'<p class="note">{as_html(note)}</p>' for note in run_data.notes)
    return f"<p>{as_html(name)}</p>\n{notes}"


def _figure(key: str, name: str, chart: go.Figure | None, still: bytes | None, text: str) -> str:
    """Embeds a figure twice: for the screen, and for print or a reader without scripts."""
    if chart is None or still is None:
        return ""
    div = chart.to_html(CONFIG, full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=key)
    picture = base64.b64encode(still).decode()
    caption = f"<figcaption>{as_html(name)}</figcaption>" if name else ""
    return (
        f'<figure>{caption}<div class="chart">{div}</div>'
        f'<img class="still" alt="{as_html(text)}" src="data:image/svg+xml;base64,{picture}"></figure>'
    )


def _result(runs: Sequence[RunData]) -> str:
    rows = [row for run_data in runs for row in run_data.rows]
    starts = [sum(len(run_data.rows) for run_data in runs[:at]) for at in range(len(runs))]
    references = [start for start, run_data in zip(starts, runs, strict=True) for _ in run_data.rows]
    columns = comparison_columns(rows, references)
    body = ""
    for at, row in enumerate(zip(*columns.values(), strict=True)):
        if len(runs) > 1 and at in starts:
            run_data = runs[starts.index(at)]
            body += f'<tr class="group"><th colspan="{len(columns)}">{as_html(run_data.name)}</th></tr>'
        body += _row(row)
    text = (
        "Accuracy on the report split, which nothing was chosen by, with its standard error; in brackets the fraction "
        "of the 8-bit cost. Costs are simulated, or from a measured table."
    ) + _describe_batches(runs)
    below = "".join(f"<p>{_compare(run_data, len(runs) > 1)}</p>" for run_data in runs)
    below += "".join(_front_table(run_data) for run_data in runs)
    return f"{_table(list(columns), body)}<p>{text}</p>{below}"


def _describe_batches(runs: Sequence[RunData]) -> str:
    """Says what a latency and an energy are of, where it is known: costs of different batches cannot be compared."""
    batches = {run_data.name: run_data.batch for run_data in runs if run_data.batch is not None}
    if len(set(batches.values())) > 1:
        each = ", ".join(f"{batch} images in {as_html(name)}" for name, batch in batches.items())
        return f" Latency and energy are of one batch: {each}."
    return "".join(f" Latency and energy are of batches of {batch} images." for batch in set(batches.values()))


def _front_table(run_data: RunData) -> str:
    """Lists the policies found within each of several budgets."""
    if not run_data.front:
        return ""
    columns = comparison_columns(run_data.front)
    body = "".join(_row(row) for row in zip(*columns.values(), strict=True))
    return _table(list(columns), body, f"{run_data.name}: the best policy within each budget")


def _compare(run_data: RunData, several: bool) -> str:
    """Compares the policy with the best uniform one, on the report split as on the search split."""
    uniform, found, search_accuracy = run_data.rows[1], run_data.rows[2], run_data.search_accuracy
    pairs: Any = zip(found.cost._fields, found.cost, uniform.cost, strict=True)
    ratios = [f"{name} {cost / other:.2f}x" for name, cost, other in pairs if other > 0 and cost > 0]
    points = 100 * (found.accuracy - uniform.accuracy)
    text = (
        f"Against the best uniform policy in the budget: {points:+.1f} points of accuracy, {', '.join(ratios)}. On the "
        f"images that the policy was chosen by: float {100 * search_accuracy['float']:.1f} %, "
        f"uniform {100 * search_accuracy['uniform']:.1f} %, found {100 * search_accuracy['policy']:.1f} %."
    )
    return as_html(f"{run_data.name}: {text}" if several else text)


def _layer_table(run_data: RunData, several: bool) -> str:
    """Lists as numbers what the figures show of each layer."""
    of = run_data.layers
    columns: dict[str, list[str]] = {
        "": [str(at + 1) for at in range(len(of.names))],
        "layer": list(of.names),
        "kind": layer_kinds(of.depthwise, of.pointwise),
        "shape": list(of.shapes),
        "weight bits": [str(bits) for bits in run_data.policy[:, WEIGHT]],
        "activation bits": [str(bits) for bits in run_data.policy[:, ACTIVATION]],
    }
    if of.macs is not None:
        columns["multiply-accumulates (M)"] = [f"{macs / 1e6:.3f}" for macs in of.macs]
    for resource, costs in run_data.layer_costs.items():
        unit, scale = unit_of(resource, costs.before)
        for when, values in zip(("at 8 bits", "found"), costs, strict=True):
            columns[f"{resource} ({unit}), {when}"] = [f"{value / scale:.4g}" for value in values]
    body = "".join(_row(row) for row in zip(*columns.values(), strict=True))
    return _table(list(columns), body, run_data.name if several else "", "layers")


def _configuration(runs: Sequence[RunData]) -> str:
    names = list(dict.fromkeys(name for run_data in runs for name in run_data.configuration))
    body = ""
    for name in names:
        values = [run_data.configuration.get(name, "–") for run_data in runs]
        style = ' class="differs"' if len(set(values)) > 1 else ""
        cells = "".join(f"<td>{as_html(value)}</td>" for value in values)
        body += f"<tr{style}><th>{as_html(name)}{' ≠' if style else ''}</th>{cells}</tr>"
    return _table(["", *(run_data.name for run_data in runs)], body, style="words")


def _table(headings: Sequence[str], body: str, caption: str = "", style: str = "") -> str:
    head = "".join(f'<th scope="col">{as_html(heading)}</th>' for heading in headings)
    named = f"<caption>{as_html(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table class="{style}">{named}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(cells: Sequence[str]) -> str:
    first, *rest = map(as_html, cells)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
