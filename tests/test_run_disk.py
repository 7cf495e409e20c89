"""What a full disk, a read-only folder and a checkpoint cut short leave behind: a line, and the last good state."""

import contextlib
import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import haqjax.run.answers.common
import haqjax.run.evaluators
import haqjax.run.folder.journal
import haqjax.run.resumable
from haqjax import calibrate
from haqjax.cli import describe_error, main
from haqjax.data import Split
from haqjax.evaluation import make_evaluator
from haqjax.files import write_bytes
from haqjax.run import SearchConfig, run_search
from haqjax.run.commands.search import find_folder
from haqjax.training.checkpoints import open_checkpoints
from haqjax.types import Evaluation, Evaluator
from run_world import install

EPISODES = 16
ASKED = dict(search="random", layers="*=2-8", rounding="nearest", budget="0.6", episodes=EPISODES)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(haqjax.run.answers.common, "save", lambda *figure: None)  # takes seconds
        patch.setattr(haqjax.run.folder.journal, "EVERY", 0.0)
        install(patch)
        yield tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(world):
    return run_search(SearchConfig.of(**ASKED, out=str(world / "whole")), Console(quiet=True))


def read(folder):
    return json.loads((folder / "policy.json").read_text()), (folder / "episodes.csv").read_text()


def resume(folder):
    """Goes on to the end; returns what was said."""
    with tempfile.TemporaryFile("w+") as said:
        run_search(SearchConfig.of(resume=str(folder)), Console(file=said, width=200))
        said.seek(0)
        return said.read()


@contextlib.contextmanager
def full_disk(size):
    """No file grows beyond `size` bytes: the system refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("what", ["checkpoints", "episodes", "curves"])
def test_a_full_disk_is_one_line_and_the_search_goes_on_later(world, finished, what, monkeypatch, capsys):
    """Each kind of file is the first that cannot be written, in the third round."""
    out, stack = world / f"full_{what}", contextlib.ExitStack()
    place, name = {
        "checkpoints": (haqjax.run.folder.journal.Checkpoints, "save"),
        "episodes": (haqjax.run.folder.journal, "write_episodes"),
        "curves": (haqjax.run.folder.journal.Journal, "_draw"),
    }[what]
    write, calls = getattr(place, name), []

    def fill_first(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            stack.enter_context(full_disk(100))
        return write(*arguments, **options)

    words = [word for name, value in ASKED.items() for word in (f"--{name}", str(value))]
    with monkeypatch.context() as patch, stack:
        patch.setattr(place, name, fill_first)
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "the tests' own")
        patch.setattr(sys, "argv", ["haqjax", "search", *words, "--out", str(out)])
        with pytest.raises(SystemExit) as stopped:
            main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1, said
    assert str(out) in said and "cannot be written (File too large): what was saved there before is kept" in said
    assert not (out / "policy.json").exists()
    resume(out)
    assert read(out) == read(finished)


@pytest.mark.parametrize("name", ["figures/bits.png", "policy.json"])
def test_a_disk_that_is_full_at_the_end_names_the_file_and_how_to_go_on(world, finished, name, monkeypatch):
    out, stack = world / f"full_{Path(name).stem}", contextlib.ExitStack()
    place, write = haqjax.run.answers.common, haqjax.run.answers.common.write_json

    def draw(figure, path, *rest):
        stack.enter_context(full_disk(100))
        write_bytes(path, bytes(1000))

    def write_last(*arguments):
        with full_disk(100):
            return write(*arguments)

    with monkeypatch.context() as patch, stack, pytest.raises(OSError) as full:
        if name == "policy.json":
            patch.setattr(place, "write_json", write_last)
        else:
            patch.setattr(place, "save", draw)
        run_search(SearchConfig.of(**ASKED, out=str(out)), Console(quiet=True))
    line, status = describe_error(full.value)
    assert status == 2 and line == (
        f"haqjax: {out / name}: File too large; nothing of that name was written; make room and ask again; "
        f"go on with `make search RESUME={out}`"
    )
    assert not (out / "policy.json").exists()
    resume(out)
    assert read(out) == read(finished)


def test_a_disk_that_is_full_from_the_first_leaves_nothing(world, monkeypatch):
    with full_disk(0), pytest.raises(OSError, match=r"cannot be written \(File too large\)"):
        haqjax.run.resumable.make_run_folder(world / "never", SearchConfig(), Console(quiet=True)).__enter__()
    assert not (world / "never").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, capfd):
    states = [{"w": np.random.default_rng(seed).normal(size=20000)} for seed in range(3)]
    with (
        pytest.raises(OSError, match=r"cannot be written \(File too large\)"),
        open_checkpoints(tmp_path / "kept", {}, every=1) as checkpoints,
    ):
        checkpoints.save(states[0], 1)
        checkpoints.manager.wait_until_finished()
        with full_disk(1000):
            checkpoints.save(states[1], 2)
            checkpoints.save(states[2], 3)  # waits for the one before
    assert capfd.readouterr().err == ""
    with open_checkpoints(tmp_path / "kept", {}, every=1) as checkpoints:
        (found,), number = checkpoints.newest()
        np.testing.assert_array_equal(found, states[0]["w"])
        assert number == 1
        checkpoints.save(states[1], 2)  # over what was left of it
    with open_checkpoints(tmp_path / "kept", {}, every=1) as checkpoints:
        (found,), number = checkpoints.newest()
    np.testing.assert_array_equal(found, states[1]["w"])


@pytest.mark.parametrize("cut", [lambda data: b"", lambda data: data[: len(data) // 2]])
def test_a_checkpoint_cut_short_gives_way_to_the_one_before(world, finished, cut, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "cut"))
    newest = folder / "checkpoints" / str(EPISODES)
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(cut(file.read_bytes()))
    said = resume(folder)
    assert f"checkpoint {EPISODES} in {folder / 'checkpoints'} cannot be read: an earlier one is gone on from" in said
    assert read(folder) == read(finished)
    assert "cannot be read" not in resume(folder)  # it was written anew
    assert read(folder) == read(finished)


@contextlib.contextmanager
def as_anyone():
    """Without the rights of the superuser, who may write anywhere."""
    superuser = os.geteuid() == 0
    if superuser:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if superuser:
            os.setresuid(0, 0, 0)


@pytest.fixture
def read_only(world, finished):
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(finished, folder / "run")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_is_read_only_is_told_before_any_work(read_only, finished):
    with as_anyone():
        with pytest.raises(ValueError, match="run cannot be written to, .*: make it writable"):
            find_folder(SearchConfig.of(resume=str(read_only / "run")))
        with pytest.raises(ValueError, match=r"new cannot be made: .* is no folder that can be written to"):
            SearchConfig.of(out=str(read_only / "new")).check_files()
    assert read(read_only / "run") == read(finished)


def test_one_logit_that_is_not_finite_is_told_by_the_loss():
    apply = lambda params, x: jnp.where(x[:, 0, :, 0] > 5, -jnp.inf, x[:, 0, :, 0] @ params["w"])
    images = np.eye(4, dtype=np.float32)[:, None, :, None]
    ranges = calibrate(apply, {"w": jnp.eye(4)}, [images])
    whole = jnp.full((1, 1, 2), 32)
    found = []
    for spoilt in (0, 9):
        images = np.concatenate([images[:3], images[3:] + spoilt * np.eye(4)[:1][:, None, :, None]]).astype(np.float32)
        split = Split(images, np.arange(4, dtype=np.int32))
        found.append(make_evaluator(apply, {"w": jnp.eye(4)}, split, ranges)(whole))
    assert np.isfinite(found[0].loss).all() and found[0].accuracy == 1
    assert np.isposinf(found[1].loss).all() and found[1].accuracy == 0.75


def test_policies_with_outputs_that_are_not_finite_are_counted_and_never_win(world, monkeypatch):
    def evaluate(evaluator, policies, least):
        few = policies[:, 0, 0] <= 5  # bits of the first layer's weights
        return Evaluation(jnp.where(few, 1.0, 0.5), jnp.where(few, jnp.inf, 1.0))

    spoilt = Evaluator(evaluate, None, None, None, None)

    monkeypatch.setattr(haqjax.run.evaluators, "make_evaluator", lambda *rest, **options: spoilt)
    with open(world / "said.txt", "w+") as file:
        out = run_search(SearchConfig.of(**ASKED, out=str(world / "infinite")), Console(file=file, width=200))
        file.seek(0)
        said = file.read()
    told, rows = read(out)
    lost = [row.split(",")[1] == "" for row in rows.splitlines()[1:]]
    assert 0 < sum(lost) < EPISODES
    assert f"{sum(lost)} of {EPISODES} policies gave outputs that are not finite: none was chosen." in said
    assert told["not_finite"] == sum(lost)
    assert told["layers"][0]["weight_bits"] > 5 and told["accuracies"]["search"]["policy"] == 0.5
