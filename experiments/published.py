"""The published figures that the experiments stand beside, each with how far it can be trusted.

HAQ: Wang et al. 2019 (arXiv 1811.08886). Grades: "read" in the paper or the released code; "notes", read in a third
party's notes on the paper; "simulated", what haqjax's BISMO model gives too; "recalled", consistent with those, not
confirmed.
"""

from typing import NamedTuple


class Point(NamedTuple):
    """A figure of a paper."""

    accuracy: float  # top-1 on ImageNet's 50,000 validation images, %
    cost: float  # ms, mJ or MiB
    accuracy_grade: str
    cost_grade: str


READ, NOTES, SIMULATED, RECALLED = "read", "notes", "simulated", "recalled"

# (network, machine, bits of the uniform policy that sets the budget) -> PACT, HAQ; ms, first and last layer not counted
LATENCY = {
    ("mobilenet_v1", "edge", 4): (Point(62.44, 45.45, RECALLED, RECALLED), Point(67.40, 45.51, RECALLED, RECALLED)),
    ("mobilenet_v1", "edge", 5): (Point(67.00, 57.75, RECALLED, RECALLED), Point(70.58, 57.70, NOTES, NOTES)),
    ("mobilenet_v1", "edge", 6): (Point(70.46, 70.67, RECALLED, RECALLED), Point(71.20, 70.35, RECALLED, RECALLED)),
    ("mobilenet_v1", "cloud", 4): (Point(62.44, 57.49, RECALLED, SIMULATED), Point(65.33, 57.40, RECALLED, RECALLED)),
    ("mobilenet_v1", "cloud", 5): (Point(67.00, 77.52, RECALLED, SIMULATED), Point(69.97, 77.49, NOTES, NOTES)),
    ("mobilenet_v1", "cloud", 6): (Point(70.46, 99.86, RECALLED, SIMULATED), Point(71.20, 99.66, RECALLED, RECALLED)),
    ("mobilenet_v2", "edge", 4): (Point(61.39, 52.15, NOTES, RECALLED), Point(66.99, 52.12, RECALLED, RECALLED)),
    ("mobilenet_v2", "edge", 5): (Point(68.84, 66.94, NOTES, RECALLED), Point(70.90, 66.92, NOTES, NOTES)),
    ("mobilenet_v2", "edge", 6): (Point(71.25, 82.49, NOTES, RECALLED), Point(71.89, 82.34, RECALLED, RECALLED)),
    ("mobilenet_v2", "cloud", 4): (Point(61.39, 74.46, NOTES, SIMULATED), Point(67.01, 73.97, RECALLED, RECALLED)),
    ("mobilenet_v2", "cloud", 5): (Point(68.84, 99.43, NOTES, SIMULATED), Point(69.45, 99.07, RECALLED, RECALLED)),
    ("mobilenet_v2", "cloud", 6): (Point(71.25, 127.07, NOTES, SIMULATED), Point(71.85, 127.03, RECALLED, RECALLED)),
}
EIGHT_BITS = {
    ("mobilenet_v1", "edge"): Point(70.82, 96.20, NOTES, NOTES),
    ("mobilenet_v2", "edge"): Point(71.81, 115.84, RECALLED, NOTES),
    ("mobilenet_v1", "cloud"): Point(70.82, 151.09, NOTES, SIMULATED),
    ("mobilenet_v2", "cloud"): Point(71.81, 189.82, RECALLED, SIMULATED),
}

# ms of the best policy for one machine (row) on another (column); "read"
MACHINES = ("bitfusion", "edge", "cloud")
SPECIALISED = {
    "bitfusion": (16.29, 85.24, 117.44),
    "edge": (19.95, 64.29, 108.64),
    "cloud": (19.94, 66.15, 99.68),
}

# MobileNet-V1 on BitFusion, mJ; its configuration is not known, so that only shares of the 8-bit energy compare
ENERGY_8_BITS = Point(70.82, 31.03, NOTES, NOTES)
ENERGY = (Point(70.37, 16.30, NOTES, NOTES), Point(70.90, 26.67, NOTES, NOTES))

# (network, bits of the uniform codebook) -> Deep Compression, HAQ; MiB, with batch norm and biases at 32 bits
SIZE = {
    ("mobilenet_v1", 2): (Point(37.62, 1.09, NOTES, SIMULATED), Point(57.14, 1.09, NOTES, NOTES)),
    ("mobilenet_v2", 2): (Point(58.07, 0.96, NOTES, SIMULATED), Point(66.75, 0.95, NOTES, NOTES)),
    ("mobilenet_v2", 3): (None, Point(70.90, 1.38, NOTES, NOTES)),
    ("mobilenet_v2", 4): (None, Point(71.47, 1.79, NOTES, NOTES)),
    ("resnet50", 2): (Point(68.95, 6.29, NOTES, SIMULATED), Point(70.63, 6.30, NOTES, NOTES)),
    ("resnet50", 3): (None, Point(75.30, 9.22, NOTES, NOTES)),
    ("resnet50", 4): (None, Point(76.14, 12.14, NOTES, NOTES)),
}


def format_point(point: Point | None) -> str:
    """Formats a figure for a table: `66.99 at 52.12 (recalled)`; the weaker grade of the two counts."""
    if point is None:
        return ""
    order = (READ, SIMULATED, NOTES, RECALLED)
    grade = max(point.accuracy_grade, point.cost_grade, key=order.index)
    return f"{point.accuracy:.2f} at {point.cost:.2f} ({grade})"
