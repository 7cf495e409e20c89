"""Results of an experiment on disk: records, a table for people, figures."""

import dataclasses
import importlib.metadata
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from haqjax.files import check_free, new_folder, write_json, write_text
from haqjax.report import save

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("haqjax", "jax", "flax", "optax", "numpy")


class Results:
    """The folder of an experiment; made with the first record, so that bad input leaves nothing.

    Raises:
      ValueError: there is something of that name already.
    """

    def __init__(self, config: Any):
        self.folder = check_free(config.out)
        self.about = {"config": dataclasses.asdict(config), **where()}
        self.records: list[dict[str, Any]] = []
        self.start = time.perf_counter()

    def add(self, **record: Any) -> None:
        """Keeps a record; what was kept before a crash is on disk."""
        if not self.records:
            new_folder(self.folder)
        self.records.append(record)
        write_json(self.folder / "records.json", self.about | {"records": self.records})
        print(", ".join(f"{name} {_short(value)}" for name, value in record.items() if _is_short(value)), flush=True)

    def finish(
        self,
        title: str,
        headers: Sequence[str],
        rows: Sequence[Sequence[str]],
        lines: Sequence[str],
        figures: Mapping[str, Figure],
        **summary: Any,
    ) -> dict[str, Any]:
        """Writes the table with what is to be said of it, and the figures; returns what `main` returns."""
        about = self.about | {"seconds": round(time.perf_counter() - self.start, 1)}
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                save(figure, self.folder / f"{name}.{kind}", dpi=200)
        shown = [f"![{title}]({name}.png)" for name in figures]
        made = f"`{about['command']}`, {about['seconds']:.0f} s on {about['device']}, commit {about['commit']}."
        parts = [f"# {title}", as_markdown(headers, rows), *lines, *shown, made]
        write_text(self.folder / "table.md", "\n\n".join(parts) + "\n")
        write_json(self.folder / "records.json", about | {"records": self.records, "summary": summary})
        print("\n\n".join(parts[1 : 2 + len(lines)]) + f"\n\n{self.folder}", flush=True)
        return {"folder": self.folder, "records": self.records} | summary


def as_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table in Markdown, the first column to the left and the others to the right."""
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_mean(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Formats the mean and the standard deviation over seeds."""
    scaled = scale * np.asarray(values, float)
    mean = f"{scaled.mean():.{digits}f}"
    return mean if len(scaled) < 2 else f"{mean} ± {scaled.std(ddof=1):.{digits}f}"


def where() -> dict[str, Any]:
    """Describes the device, the versions, the commit and the command."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, cwd=ROOT
    )
    script = Path(sys.argv[0])
    inside = script.resolve().is_relative_to(ROOT) and script.suffix == ".py"
    command = ["python", str(script.resolve().relative_to(ROOT)) if inside else script.name, *sys.argv[1:]]
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind} ({platform.machine()})",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": described.stdout.strip() or "unknown",
        "command": shlex.join(command),
    }


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float | np.generic)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
