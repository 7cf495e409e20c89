"""Usage of a machine by a network: the record that every accelerator model returns."""

from typing import Any, NamedTuple

from jaxtyping import Float, Int


class Streams(NamedTuple):
    """A number for each kind of data."""

    weights: Float[Any, "L 8 8"]
    activations: Float[Any, "L 8 8"]
    outputs: Float[Any, "L 8 8"]


class Energies(NamedTuple):
    """Joules for one batch, by where they go."""

    array: Float[Any, "L 8 8"]
    buffers: Float[Any, "L 8 8"]
    dram: Float[Any, "L 8 8"]
    leakage: Float[Any, "L 8 8"]


class Usage(NamedTuple):
    """Time, traffic and energy of every layer for one batch, at `[layer, weight_bits - 1, activation_bits - 1]`.

    float64 on the host; NaN where a machine does not know.
    """

    latency: Float[Any, "L 8 8"]  # s
    ideal: Float[Any, "L 8 8"]  # s, had every unit done useful work in every cycle
    compute: Float[Any, "L 8 8"]  # s that the array alone takes
    transfers: Streams  # s that each kind of data alone takes to move from or to DRAM
    moved: Streams  # bits from or to DRAM
    energy: Energies  # J


class Limits(NamedTuple):
    """The resource that limits a layer on a machine, with the numbers of a roofline plot."""

    intensity: Float[Any, "L 8 8"]  # operations (two a multiply-accumulate) per byte from or to DRAM
    utilisation: Float[Any, "L 8 8"]  # useful fraction of the machine's peak at these bits
    limit: Int[Any, "L 8 8"]  # index into LIMITS of what takes the longest


LIMITS = ("compute", *Streams._fields)
