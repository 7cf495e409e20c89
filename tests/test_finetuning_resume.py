"""A fine-tuning that was stopped goes on as if it had never been."""

import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from finetune_world import TUNING, tune, tune_slowly

SMALL = dataclasses.replace(TUNING, epochs=2)


@pytest.fixture(scope="module")
def undisturbed():
    return tune()


def same(found, expected):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def wait_for(folder, steps, process):
    """Until there is a checkpoint of so many steps or more."""
    for _ in range(1200):
        if any(path.name.isdigit() and int(path.name) >= steps for path in folder.glob("*")):
            return
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint of {steps} steps in a minute")


def test_killed_in_the_middle_and_resumed_is_bit_identical(tmp_path, undisturbed):
    program = f"from finetune_world import tune_slowly; tune_slowly({str(tmp_path / 'saved')!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        wait_for(tmp_path / "saved", 10, process)
    finally:
        process.kill()  # SIGKILL
        process.communicate()
    assert not (tmp_path / "saved" / "30").exists()  # it was not done
    seen = []
    assert same(
        tune(checkpoints=tmp_path / "saved", on_epoch=lambda progress: seen.append(progress.epoch)), undisturbed
    )
    assert 1 not in seen  # it did not begin anew
    assert seen[-1] == TUNING.epochs


def test_finished_one_is_not_trained_again(tmp_path):
    first = tune(SMALL, checkpoints=tmp_path / "saved", every=4)
    assert sorted(path.name for path in (tmp_path / "saved").glob("*")) == ["10", "8"]
    assert same(tune(SMALL, checkpoints=tmp_path / "saved", on_epoch=pytest.fail), first)


def test_what_was_cut_short_falls_back_on_the_one_before(tmp_path):
    whole = tune(SMALL, checkpoints=tmp_path / "saved", every=4)
    for path in (tmp_path / "saved" / "10" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert same(tune(SMALL, checkpoints=tmp_path / "saved", every=4), whole)
    for number in ("8", "10"):
        shutil.rmtree(tmp_path / "saved" / number / "state")
    with pytest.raises(ValueError, match="none of the 2 checkpoints in .* can be read: remove it") as caught:
        tune(SMALL, checkpoints=tmp_path / "saved", every=4)
    assert "\n" not in str(caught.value)


def test_checkpoints_of_another_fine_tuning_are_refused(tmp_path):
    tune(SMALL, checkpoints=tmp_path / "saved", every=9)
    other = dataclasses.replace(SMALL, learning_rate=0.2)
    with pytest.raises(ValueError, match=r"of another run: learning_rate was 0.1 and is 0.2 now") as caught:
        tune(other, checkpoints=tmp_path / "saved")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="a checkpoint every 0 steps"):
        tune(SMALL, checkpoints=tmp_path / "other", every=0)


assert tune_slowly  # what the killed process runs
