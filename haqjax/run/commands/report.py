"""The report command: what runs found, as one page and as figures for papers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from haqjax.files import check_writable, write_bytes, write_text
from haqjax.report.catalogue import PICTURES, draw_runs
from haqjax.report.names import name_apart
from haqjax.report.page import make_page
from haqjax.report.run_data import RunData
from haqjax.report.static.style import as_bytes
from haqjax.run.config.commands import ReportConfig
from haqjax.run.folder.run_data import read_run_data
from haqjax.run.terminal import say

PAGE = "report.html"


def run_report(config: ReportConfig, console: Console) -> Path:
    """Writes `report.html` and `figures/*.png`, `*.svg`: into the run folder, or OUT, or the first of several folders.

    A report that was there is replaced. Of several runs, figures are called after the run as well.

    Returns:
      The page.

    Raises:
      ValueError: no finished run in one of the folders, or OUT is no place to write to; nothing is written.
    """
    if not config.run:
        raise ValueError("no run was given: name one or more run folders")
    runs = _name_apart([read_run_data(folder) for folder in config.run])
    out = check_writable(config.out or config.run[0])
    stills = {key: [_draw(picture.static(run_data)) for run_data in runs] for key, picture in PICTURES.items()}
    if len(runs) > 1:
        stills["runs"] = [_draw(draw_runs(runs))]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    places = name_apart([run_data.name for run_data in runs])
    for key, drawn in stills.items():
        for place, contents in zip(places, drawn, strict=False):
            name = key if len(runs) == 1 or key == "runs" else f"{place}-{key}"
            for ending, content in contents.items():
                write_bytes(out / "figures" / f"{name}.{ending}", content)
    svg = {key: [contents.get("svg") for contents in drawn] for key, drawn in stills.items()}
    page = write_text(out / PAGE, make_page(runs, svg))
    for run_data in runs:
        for note in run_data.notes:
            say(console, f"{run_data.name}: {note}")
    say(console, f"{page}, and its figures in {out / 'figures'}")
    return page


def _draw(figure: Figure | None) -> dict[str, bytes]:
    return {} if figure is None else {ending: as_bytes(figure, ending) for ending in ("png", "svg")}


def _name_apart(runs: Sequence[RunData]) -> list[RunData]:
    """Numbers the runs whose folders have the same name."""
    names = [run_data.name for run_data in runs]
    return [
        dataclasses.replace(run_data, name=f"{run_data.name}-{at + 1}") if names.count(run_data.name) > 1 else run_data
        for at, run_data in enumerate(runs)
    ]
