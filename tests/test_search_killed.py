"""A search that is killed again and again ends as one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "killed_search.py"


@pytest.fixture
def start(tmp_path):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
    with open(tmp_path / "said.txt", "w") as said:
        yield lambda folder, pause: subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(pause)], env=environment, stderr=said
        )


@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_change_nothing(start, tmp_path, count):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, 0).wait() == 0, (tmp_path / "said.txt").read_text()
    moments = random.Random(0)
    kills, newest = 0, []
    while kills < count:
        process = start(killed, 200)
        before = _newest(killed)
        while _newest(killed) == before and process.poll() is None:  # it has gone on by a round at least
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.6))  # between rounds, within one, or while it writes
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        newest.append(_newest(killed))
    assert kills == count, "the search must be long enough to be killed so often"
    assert newest == sorted(newest) and newest[-1] > newest[0]
    assert start(killed, 0).wait() == 0, (tmp_path / "said.txt").read_text()
    found, expected = np.load(killed / "records.npz"), np.load(whole / "records.npz")
    assert found.files == expected.files
    for name in expected.files:
        np.testing.assert_array_equal(found[name], expected[name])


def _newest(folder: Path) -> int:
    """Episodes in the newest checkpoint that is whole."""
    return max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdigit()), default=0)
