"""Checkpoints that were torn, garbled, swapped or dated wrongly: the newest whole one of the same run is read."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from haqjax.training.checkpoints import WEIGHTS, has_checkpoint, open_checkpoints

STATES = {step: {"w": np.random.default_rng(step).normal(size=400), "n": np.array(step)} for step in (8, 9, 10)}


def save(folder, steps=(9, 10), configuration=None):
    with open_checkpoints(folder, configuration or {"seed": 0}, every=1) as checkpoints:
        for step in steps:
            checkpoints.save(STATES[step], step)
    return folder


def newest(folder, configuration=None):
    with open_checkpoints(folder, configuration or {"seed": 0}, every=1) as checkpoints:
        state, step = checkpoints.restore(STATES[9])
        return state, step, list(checkpoints.unreadable)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save(tmp_path_factory.mktemp("whole") / "saved")


def flip(data):
    """Changes a byte in the middle."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x55]) + data[len(data) // 2 + 1 :] if data else b"x"


DAMAGES = {"missing": None, "empty": lambda data: b"", "half": lambda data: data[: len(data) // 2], "garbled": flip}


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_file_of_the_newest_may_be_damaged(whole, tmp_path, damage):
    """Either the file was not needed, or the checkpoint before it is read: never other numbers, never an error."""
    fell_back = 0
    for at, file in enumerate(sorted(path for path in (whole / "10").rglob("*") if path.is_file())):
        folder = Path(shutil.copytree(whole, tmp_path / str(at)))
        damaged = folder / file.relative_to(whole)
        if DAMAGES[damage] is None:
            damaged.unlink()
        else:
            damaged.write_bytes(DAMAGES[damage](damaged.read_bytes()))
        state, step, unreadable = newest(folder)
        assert (step, unreadable) in [(10, []), (9, [10])], file
        for name, values in STATES[step].items():
            np.testing.assert_array_equal(state[name], values, err_msg=str(file))
        fell_back += step == 9
    assert fell_back


@pytest.mark.parametrize("stands", ["folder", "file", "pipe", "dangling link"])
def test_what_only_looks_like_a_newer_checkpoint_is_none(whole, tmp_path, stands):
    folder = Path(shutil.copytree(whole, tmp_path / "saved"))
    path = folder / "99"
    make = {"folder": path.mkdir, "file": path.touch, "pipe": lambda: os.mkfifo(path)}
    make.get(stands, lambda: path.symlink_to("nowhere"))()
    state, step, _ = newest(folder)
    assert step == 10 and state["n"] == 10


def test_numbers_and_not_times_say_which_is_the_newest(whole, tmp_path):
    """The clock was set back before the last one."""
    folder = Path(shutil.copytree(whole, tmp_path / "saved"))
    for path in (folder / "10", *(folder / "10").rglob("*")):
        os.utime(path, (1, 1))
    assert newest(folder)[1] == 10
    with open_checkpoints(folder, {"seed": 0}, every=1) as checkpoints:
        checkpoints.save(STATES[10], 11)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdecimal()) == ["10", "11"]


@pytest.mark.parametrize(
    "configuration, message",
    [
        ({"seed": 1}, "are of another run: seed was 0 and is 1 now; remove the folder or choose another"),
        ({"seed": 0, "hw": "x\x1b" * 999}, r"hw was None and is 'x\\x1b"),
        ({"seed": 0, WEIGHTS: "b"}, "fingerprint of the weights was 'a' and is 'b' now"),
    ],
)
def test_checkpoints_of_another_run_are_refused(tmp_path, configuration, message):
    folder = save(tmp_path / "saved", configuration={"seed": 0, WEIGHTS: "a"})
    with pytest.raises(ValueError, match=message) as refused:
        newest(folder, configuration)
    assert str(refused.value).isprintable() and len(str(refused.value)) <= 500
    assert newest(folder, {"seed": 0})[1] == 10  # older versions kept no fingerprint of the weights


def test_one_swapped_checkpoint_among_those_of_the_run_is_refused(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "saved"))
    other = save(tmp_path / "other", configuration={"seed": 7})
    shutil.rmtree(folder / "10")
    shutil.copytree(other / "10", folder / "10")
    with pytest.raises(ValueError, match="another run: seed was 7 and is 0 now"):
        newest(folder)


def test_looking_for_checkpoints_makes_nothing(tmp_path):
    assert not has_checkpoint(tmp_path / "none") and not list(tmp_path.iterdir())
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    assert not has_checkpoint(tmp_path)
