"""The benchmark for accelerators runs where there is none, and finds that no type changes a loss."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import accelerator

pytestmark = [pytest.mark.slow, pytest.mark.optimised]


def test_it_runs_on_a_cpu():
    sizes = {"images": 4, "at_a_time": 2}
    found = accelerator.bench("resnet20", 16, sizes)
    assert not found["types"]["losses_differ"] and found["mesh"] is None
    assert all(rate > 0 for rate in found["batching"]["policy_images_per_second"].values())
    assert 0 < found["search"]["cost"] < 1 and sum(found["types"]["chosen"].values()) == 20
