"""The hardware command: what limits each layer of a network on some machines."""

from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from haqjax.files import new_folder
from haqjax.hardware import Machine, cost_table, find_limits, machine
from haqjax.hardware.machines import estimate_usage
from haqjax.hardware.usage import LIMITS
from haqjax.report import as_text, save
from haqjax.report.names import as_cell, name_apart
from haqjax.report.static.roofline import latency_figure, limits_figure
from haqjax.run.commands.table import find_network
from haqjax.run.config.commands import HardwareConfig
from haqjax.run.terminal import say
from haqjax.tracing.layer_table import layers
from haqjax.types import LayerTable

WIDTHS = (8, 4)  # bits compared
TABLE_WIDTH = 110  # characters that the table needs

Parts = dict[int, tuple[np.ndarray, ...]]  # by bits: fraction of the latency, limit, intensity, utilisation


def run_hardware(config: HardwareConfig, console: Console) -> Path | None:
    """Prints, for each machine, every layer's fraction of the latency at 8 and 4 bits and what limits it.

    Returns:
      The folder of figures, where one was asked for.

    Raises:
      ValueError: bad input; nothing is written.
    """
    machines = [machine(name) for name in config.hw]
    apply, params, example, options = find_network(config.model, config.classes, config.image_size)
    table_of = layers(apply, params, example, **options)
    parts = [_explain(accelerator, table_of) for accelerator in machines]
    for accelerator, rows in zip(machines, parts, strict=True):
        text = as_text(_as_table(accelerator, table_of, rows, config.model), TABLE_WIDTH)
        console.print(Text(text), end="\n\n", soft_wrap=True)
    if config.out is None:
        return None
    out, places = new_folder(config.out), name_apart([accelerator.name for accelerator in machines])
    for accelerator, rows, place in zip(machines, parts, places, strict=True):
        for name, figure in _figures(accelerator, table_of, rows, config.model).items():
            save(figure, out / f"{place}-{name}.png")
    say(console, f"figures in {out}")
    return out


def _explain(accelerator: Machine, table_of: LayerTable) -> Parts:
    latency, found = cost_table(accelerator, table_of).latency, find_limits(accelerator, table_of)

    def at(values: np.ndarray, bits: int) -> np.ndarray:
        return np.asarray(values)[:, bits - 1, bits - 1]

    return {
        bits: (
            at(latency, bits) / at(latency, bits).sum(),
            at(found.limit, bits),
            at(found.intensity, bits),
            at(found.utilisation, bits),
        )
        for bits in WIDTHS
    }


def _as_table(accelerator: Machine, table_of: LayerTable, parts: Parts, model: str) -> Table:
    title = f"{model} on {accelerator.name}: part of the latency, its limit, operations per byte, use of the peak"
    table = Table(title=as_cell(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for bits in WIDTHS:
        for heading in (f"{bits} bits", "limit", "op/B", "use"):
            table.add_column(heading, justify="left" if heading == "limit" else "right", no_wrap=True)
    lookup = np.zeros(len(table_of), bool) if table_of.lookup is None else table_of.lookup
    kinds = {
        "lookup": lookup,
        "dense": table_of.dense,
        "depthwise": table_of.depthwise,
        "pointwise": table_of.pointwise,
    }
    for at, name in enumerate(table_of.names):
        cells = [name, next((kind for kind, flags in kinds.items() if flags[at]), "conv")]
        for fraction, limit, intensity, utilisation in parts.values():
            cells += [f"{fraction[at]:.1%}", LIMITS[limit[at]], f"{intensity[at]:.1f}", f"{utilisation[at]:.0%}"]
        table.add_row(*map(as_cell, cells))
    return table


def _figures(accelerator: Machine, table_of: LayerTable, parts: Parts, model: str) -> dict:
    usage = estimate_usage(accelerator, table_of)
    kinds = table_of.depthwise, table_of.pointwise
    figures = {
        "latency": latency_figure(
            {f"{bits} bits": fraction for bits, (fraction, *_) in parts.items()},
            *kinds,
            f"{model} on {accelerator.name}",
        )
    }
    products = np.where(table_of.macs > 0, 1.0, np.nan)  # lookups have no place in a roofline
    for bits, (_, _, intensity, utilisation) in parts.items():
        at = (slice(None), bits - 1, bits - 1)
        speed = 2.0 * accelerator.spec.batch * table_of.macs / usage.latency[at] * products
        moved = np.sum([stream[at] for stream in usage.moved], axis=0) / 8
        longest = np.max([stream[at] for stream in usage.transfers], axis=0)
        bandwidth = float(np.nanmax(moved / np.maximum(longest, np.finfo(float).tiny)))
        title = f"{model} on {accelerator.name}, {bits} bits"
        peak = float(np.nanmax(speed / np.where(utilisation > 0, utilisation, np.nan)))
        figures[f"roofline-{bits}bits"] = limits_figure(intensity * products, speed, peak, bandwidth, *kinds, title)
    return figures
