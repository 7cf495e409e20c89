"""What a process that is killed while it saves weights leaves behind."""

import os
import shutil

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from haqjax.training import load_params, save_params
from haqjax.training.weights import ABANDONED

LIKE = {"kernel": jnp.zeros(3)}


class Killed(BaseException):
    """Nothing of the process runs after it."""


def die(*args, **kwargs):
    raise Killed


def save_half(self, path, *args, **kwargs):
    path.mkdir(parents=True)
    (path / "half").touch()
    raise Killed


def load(path):
    return load_params(path, LIKE)["kernel"].tolist()


def save(path, value):
    save_params(path, {"kernel": jnp.full(3, value)})


@pytest.fixture
def killed(monkeypatch):
    """Saves, and dies at a certain place; a dead process removes no folder."""

    def killed(path, value, owner, name, instead=die):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(shutil, "rmtree", die)
            patched.setattr(owner, name, instead)
            save(path, value)

    return killed


DEATHS = {
    "while it writes": (ocp.StandardCheckpointer, "save", save_half),
    "before the new weights take their place": (os, "rename", die),
}


@pytest.mark.parametrize("death", DEATHS)
def test_the_old_weights_are_whole(tmp_path, killed, death):
    save(tmp_path / "weights", 1.0)
    killed(tmp_path / "weights", 2.0, *DEATHS[death])
    assert load(tmp_path / "weights") == [1, 1, 1]


def test_the_new_weights_are_whole_while_the_old_ones_go(tmp_path, killed):
    save(tmp_path / "weights", 1.0)
    killed(tmp_path / "weights", 2.0, shutil, "rmtree")
    assert load(tmp_path / "weights") == [2, 2, 2]
    assert len(list((tmp_path / "weights").iterdir())) == 2
    save(tmp_path / "weights", 3.0)
    assert load(tmp_path / "weights") == [3, 3, 3]
    assert len(list((tmp_path / "weights").iterdir())) == 1


@pytest.mark.parametrize("death", DEATHS)
def test_there_are_none_where_none_were(tmp_path, killed, death):
    killed(tmp_path / "weights", 1.0, *DEATHS[death])
    with pytest.raises(ValueError, match="there are no saved parameters at"):
        load(tmp_path / "weights")


@pytest.mark.parametrize("death", DEATHS)
def test_what_a_dead_process_left_is_removed_in_time(tmp_path, killed, death):
    killed(tmp_path / "weights", 1.0, *DEATHS[death])
    (left,) = tmp_path.iterdir()
    save(tmp_path / "weights", 2.0)
    assert left.exists()  # it may be another process at work
    os.utime(left, (0, left.stat().st_mtime - 2 * ABANDONED))
    save(tmp_path / "weights", 3.0)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(ocp.StandardCheckpointer, "save", save_half)
    with pytest.raises(Killed):
        save(tmp_path / "weights", 1.0)
    assert not list(tmp_path.iterdir())


def test_another_process_may_take_the_number_meanwhile(tmp_path, monkeypatch):
    """The later of two writers wins, and neither fails."""
    save(tmp_path / "weights", 1.0)
    rename, others = os.rename, []

    def interrupted(*paths):
        if not others:
            others.append(True)
            save(tmp_path / "weights", 2.0)
        rename(*paths)

    monkeypatch.setattr(os, "rename", interrupted)
    save(tmp_path / "weights", 3.0)
    assert load(tmp_path / "weights") == [3, 3, 3]


def test_a_plain_orbax_folder_is_read_and_replaced(tmp_path):
    """As releases before this form wrote it."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "weights", {"kernel": jnp.full(3, 1.0)})
    assert load(tmp_path / "weights") == [1, 1, 1]
    save(tmp_path / "weights", 2.0)
    assert load(tmp_path / "weights") == [2, 2, 2]


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "notes.txt").touch()
    for value in (1.0, 2.0):
        save(tmp_path / "weights", value)
    assert load(tmp_path / "weights") == [2, 2, 2]
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["1", "notes.txt"]
