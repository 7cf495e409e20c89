"""Measured tables as machines: lookup of the costs of a network's layers."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from haqjax.hardware.spec import LARGEST, SMALLEST
from haqjax.hardware.usage import Energies, Streams, Usage
from haqjax.reading import quote
from haqjax.text import escape
from haqjax.types import WIDTHS, LayerTable

TOLERANCE = 0.01  # a cost may fall by this fraction from one width to the next before a warning


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A table as read from a file, of N entries."""

    path: str
    names: tuple[str, ...] | None  # of the layers; None where the file has none, so that only their number is known
    shapes: Mapping[str, tuple[str, ...]]  # of the layers, as text: {"kernel": ("3x3", "1x1"), ...}
    count: int  # of layers
    at: Int[np.ndarray, "N"]  # (layer * 8 + weight bits - 1) * 8 + activation bits - 1, each once
    latency: Float[np.ndarray, "N"]  # s
    energy: Float[np.ndarray, "N"] | None  # J; NaN where it was not measured
    batch: int | None = None  # images that they are of; None where the file does not say

    def __post_init__(self):
        several = np.flatnonzero(np.bincount(self.at // WIDTHS**2, minlength=self.count) > 1)
        for cost, values in (("latency", self.latency), ("energy", self.energy)):
            if values is not None:
                self._check_values(cost, values)
                self._warn_of_falls(cost, self.lay_out(values, several), several)
        if self.batch is not None and self.batch > 1:
            warn(f"{escape(self.path)}: latency and energy are of batches of {self.batch} images")

    def lay_out(
        self, values: Float[np.ndarray, "N"] | None, layers: Int[np.ndarray, "K"]
    ) -> Float[np.ndarray, "K 8 8"]:
        """Lays out values of some layers by their bits; NaN where the file has no entry."""
        table = np.full((len(layers), WIDTHS, WIDTHS), np.nan)
        if values is not None:
            place = np.full(self.count, -1)
            place[layers] = np.arange(len(layers))
            place = place[self.at // WIDTHS**2]
            wanted = place >= 0
            table.reshape(-1)[place[wanted] * WIDTHS**2 + self.at[wanted] % WIDTHS**2] = values[wanted]
        return table

    def label(self, layer: int | np.integer) -> str:
        """Returns the name of a layer for a message."""
        return quote(self.names[layer]) if self.names else str(layer)

    def _check_values(self, cost: str, values: Float[np.ndarray, "N"]) -> None:
        bad = (values < SMALLEST) | (values > LARGEST)
        if bad.any():
            entry = int(np.argmax(bad))
            layer, w, a = np.unravel_index(self.at[entry], (self.count, WIDTHS, WIDTHS))
            raise ValueError(
                f"{escape(self.path)}: {cost} of layer {self.label(layer)} at {w + 1}/{a + 1} bits "
                f"(weights/activations) is {values[entry]:g}; it must be finite and above 0"
            )

    def _warn_of_falls(self, cost: str, values: Float[np.ndarray, "K 8 8"], layers: Int[np.ndarray, "K"]) -> None:
        for axis, operand in ((1, "weight"), (2, "activation")):
            falls = values < (1 - TOLERANCE) * np.fmax.accumulate(values, axis=axis)  # below that of a narrower width
            if falls.any():
                at, w, a = np.argwhere(falls)[0]
                warn(
                    f"{escape(self.path)}: {cost} falls with more {operand} bits in {falls.sum()} places, first in "
                    f"layer {self.label(layers[at])} at {w + 1}/{a + 1} bits (weights/activations); a search assumes "
                    "it rises"
                )


def warn(text: str) -> None:
    """Warns of a table, as from this line: one that is read twice is told of once."""
    warnings.warn(text, stacklevel=1)


def estimate(spec: Measured, layers: LayerTable) -> Usage:
    """Looks up the layers of a network in a measured table.

    A pair of widths without an entry costs what the cheapest entry does that is at least as wide in both: a machine
    for 2, 4 and 8 bits computes 3 bits as 4. Where there is none, it costs infinity.

    Args:
      spec: the table.
      layers: the network.

    Returns:
      The usage for one batch, of which only the latency and the energy are known; NaN without a measured energy.

    Raises:
      ValueError: the table is of a network with other layers, or other shapes of them.
    """
    order = _match_layers(spec, layers)
    latency, energy = spec.lay_out(spec.latency, order), spec.lay_out(spec.energy, order)
    unknown = np.full_like(latency, np.nan)
    energy = unknown if np.isnan(energy[~np.isnan(latency)]).any() else _complete(energy)
    nothing = np.zeros_like(energy)
    streams = Streams(unknown, unknown, unknown)
    # All of the energy stands under the array: a measurement does not say where it went.
    return Usage(_complete(latency), unknown, unknown, streams, streams, Energies(energy, nothing, nothing, nothing))


def find_available(spec: Measured, layers: LayerTable) -> Bool[np.ndarray, "L 2 8"]:
    """Finds the widths [layer, weights or activations, bits - 1] that a measured table has an entry for.

    Raises:
      ValueError: as `estimate`.
    """
    present = ~np.isnan(spec.lay_out(spec.latency, _match_layers(spec, layers)))
    return np.stack([present.any(axis=2), present.any(axis=1)], axis=1)


def _complete(values: Float[np.ndarray, "L 8 8"]) -> Float[np.ndarray, "L 8 8"]:
    """Replaces NaN by the cheapest entry that is at least as wide in both."""
    wider = np.where(np.isnan(values), np.inf, values)
    for axis in (1, 2):
        wider = np.flip(np.minimum.accumulate(np.flip(wider, axis), axis=axis), axis)
    return np.where(np.isnan(values), wider, values)


def _match_layers(spec: Measured, layers: LayerTable) -> Int[np.ndarray, "L"]:
    """Finds the row of each layer of the network in the table."""
    if spec.names is None:
        if spec.count != len(layers):
            raise ValueError(f"{escape(spec.path)}: the table has {spec.count} layers, the network {len(layers)}")
        return np.arange(len(layers))
    rows, wanted = (index_names(names, escape(spec.path)) for names in (spec.names, layers.names))
    for place, some, others in (("table", wanted, rows), ("network", rows, wanted)):
        missing = [name for name in some if name not in others]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{escape(spec.path)}: the {place} has no layer {quote(missing[0])}{more}")
    order = [rows[_key_of(name)] for name in layers.names]
    for field, texts in spec.shapes.items():
        for layer, row in enumerate(order):
            there = shape_text(layers, layer, field)
            if texts[row] != there:
                raise ValueError(
                    f"{escape(spec.path)}: layer {quote(layers.names[layer])} has {field} {escape(texts[row], 60)} in "
                    f"the table, {there} in the network"
                )
    return np.array(order)


def index_names(names: Sequence[str], where: str) -> dict[str, int]:
    """Numbers layers by what they are matched by: spaces around a name are lost in tables, as is the character 0.

    Args:
      names: of the layers.
      where: a name of the table, for an error.

    Raises:
      ValueError: two names differ in nothing else.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        if (other := places.setdefault(_key_of(name), place)) != place:
            raise ValueError(f"{where} cannot tell the layers {quote(names[other])} and {quote(name)} apart")
    return places


def _key_of(name: str) -> str:
    return name.replace("\0", "").strip()


def shape_text(layers: LayerTable, layer: int, field: str) -> str:
    """Writes a field of a layer's shape as in a file, such as `3x3`."""
    return "x".join(str(n) for n in np.ravel(getattr(layers, field)[layer]))
