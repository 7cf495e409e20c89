"""Rooflines of a network's layers on a machine, at 8 bits and under a policy."""

import numpy as np

from haqjax.hardware import Machine
from haqjax.hardware.machines import estimate_usage
from haqjax.hardware.usage import LIMITS, Usage
from haqjax.policies.cost import layer_costs
from haqjax.report.run_data import ROOF_BITS, LayerSpeeds, Rooflines
from haqjax.types import FULL_PRECISION, WIDTHS, LayerTable


def find_rooflines(machine: Machine, layers: LayerTable, policy: np.ndarray) -> Rooflines | None:
    """Finds where layers stand under a machine's limits, at 8 bits and under a policy.

    None for a measured table, and for a policy that leaves tensors in floating point, at which no machine computes.
    """
    if machine.model == "measured" or (policy == FULL_PRECISION).any():
        return None
    usage = estimate_usage(machine, layers)
    operations = 2.0 * machine.spec.batch * np.where(layers.macs > 0, layers.macs, np.nan)  # lookups have no place
    timed = [moved for moved, time in zip(usage.moved, usage.transfers, strict=True) if np.any(time > 0)]
    limit = np.argmax(np.stack([usage.compute, *usage.transfers]), axis=0)

    def place(bits: np.ndarray) -> LayerSpeeds:
        moved = sum(layer_costs(stream, bits) for stream in timed) / 8
        names = tuple(LIMITS[int(at)] for at in layer_costs(limit, bits))
        return LayerSpeeds(operations / moved, operations / layer_costs(usage.latency, bits), names)

    def products(values: np.ndarray) -> np.ndarray:
        return np.where(layers.macs > 0, values, np.nan)

    def even(bits: int) -> np.ndarray:
        return np.full_like(policy, bits)

    peaks = {bits: float(np.nanmax(operations / products(layer_costs(usage.ideal, even(bits))))) for bits in ROOF_BITS}
    return Rooflines(place(even(WIDTHS)), place(policy), peaks, _bandwidth(usage))


def _bandwidth(usage: Usage) -> float:
    """Computes bytes a second: of one bus, or of all ports where several kinds of data move at the same time."""
    pairs = [(moved, time) for moved, time in zip(usage.moved, usage.transfers, strict=True) if np.any(time > 0)]
    rates = [float(np.max(moved[time > 0] / time[time > 0])) / 8 for moved, time in pairs]
    together = bool(np.any(usage.latency < 0.999 * np.sum(usage.transfers, axis=0)))
    return sum(rates) if together else max(rates)
