"""A run folder has one writer at a time, which others are told of; its lock ends with it."""

import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

import haqjax.run.answers.common
import haqjax.run.commands.search
import haqjax.run.folder.journal
from haqjax.cli import describe_error
from haqjax.run import (
    EvaluateConfig,
    FinetuneConfig,
    ReportConfig,
    SearchConfig,
    run_evaluate,
    run_finetune,
    run_report,
    run_search,
)
from haqjax.run.commands.search import find_folder
from haqjax.run.folder.lock import LOCK, lock_folder
from haqjax.searchers import loop
from haqjax.training import save_params
from run_world import install

ASKED = dict(search="random", layers="*=2-8", rounding="nearest", budget="0.6", episodes=8)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(haqjax.run.answers.common, "save", lambda *figure: None)  # takes seconds
        patch.setattr(haqjax.run.commands.report, "as_bytes", lambda figure, ending: b"<svg/>")
        patch.setattr(haqjax.run.folder.journal, "EVERY", 0.0)
        install(patch)
        yield tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(world):
    return run_search(SearchConfig.of(**ASKED, out=str(world / "whole")), QUIET)


WRITERS = {
    "search": lambda folder: run_search(SearchConfig.of(resume=folder), QUIET),
    "evaluate": lambda folder: run_evaluate(EvaluateConfig(run=folder), QUIET),
    "finetune": lambda folder: run_finetune(FinetuneConfig(run=folder), QUIET),
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_is_being_written_is_left_alone(command, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != LOCK}
    with lock_folder(finished), pytest.raises(ValueError) as refused:
        WRITERS[command](str(finished))
    holder = rf"{finished} is being written by process {os.getpid()} on \S+ since \d+-\d+-\d+ \d+:\d+:\d+"
    assert re.fullmatch(holder + ": wait for it or stop it", str(refused.value))
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_a_report_of_a_folder_that_is_being_written_is_drawn(finished, tmp_path):
    with lock_folder(finished):
        assert run_report(ReportConfig(run=(str(finished),), out=str(tmp_path)), QUIET).is_file()


def test_no_lock_is_left_behind(finished, world):
    assert not (finished / LOCK).exists()
    copy = shutil.copytree(finished, world / "copy")
    (copy / LOCK).write_text("process 1 on elsewhere since yesterday")  # of a process that was killed
    for command in WRITERS.values():
        command(str(copy))
        assert not (copy / LOCK).exists()


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    program = (
        "import sys, time\nfrom haqjax.run.folder.lock import lock_folder\n"
        f"with lock_folder({str(tmp_path)!r}):\n    print('held', flush=True)\n    time.sleep(100)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"is being written by process {process.pid} on"), lock_folder(tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / LOCK).exists()
    with lock_folder(tmp_path) as note:
        assert not note and str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_removed_while_another_waits_is_taken_anew(tmp_path, monkeypatch):
    """Its holder removes the file between another's opening and locking it."""
    usual, opened = fcntl.flock, []

    def remove_first(file, how):
        if not opened:
            os.unlink(tmp_path / LOCK)
        opened.append(file)
        usual(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with lock_folder(tmp_path):
        assert len(opened) == 2 and (tmp_path / LOCK).exists()
        monkeypatch.setattr(fcntl, "flock", usual)
        with pytest.raises(ValueError, match="is being written by"), lock_folder(tmp_path):
            pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path) as note:
        assert note == f"{tmp_path} is where no file can be locked: see to it that no other process writes there"


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_stands_in_the_place_of_the_lock_is_named(kind, tmp_path):
    make = {"pipe": os.mkfifo, "link": lambda path: path.symlink_to(tmp_path / "x"), "folder": os.mkdir}[kind]
    make(tmp_path / LOCK)
    with pytest.raises(ValueError, match=rf"no regular file.*{LOCK}|{LOCK} is no regular file"), lock_folder(tmp_path):
        pass
    assert not (tmp_path / "x").exists()


def test_a_run_that_goes_on_has_no_other_folder(finished, tmp_path):
    with pytest.raises(ValueError, match=f"writes to its own folder, {finished}, not to .*zz: leave out OUT"):
        find_folder(SearchConfig.of(resume=str(finished), out=str(tmp_path / "zz")))
    assert find_folder(SearchConfig.of(resume=str(finished), out=f"{finished}/"))[1] == finished


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_an_interrupt_that_leaves_a_checkpoint_says_how_to_go_on(finished, world, monkeypatch):
    """The first one ends the search with what was found; a second one, while that is measured, does not."""
    out = world / "twice"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        patch.setattr(haqjax.run.answers.common, "measure_policies", interrupt)
        run_search(SearchConfig.of(**ASKED, out=str(out)), QUIET)
    line, status = describe_error(stopped.value)
    assert status == 130 and line.endswith(
        f"interrupted before there was a result; go on with `make search RESUME={out}`"
    )
    assert not (out / LOCK).exists() and not (out / "policy.json").exists()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError) as stopped:
        patch.setattr(loop, "run_round", interrupt)
        run_search(SearchConfig.of(resume=str(out), episodes=12), QUIET)
    line, status = describe_error(stopped.value)
    assert line.startswith(
        "haqjax: interrupted before another round of the search ended: the 8 policies so far are kept"
    )
    assert line.endswith(f"go on with `make search RESUME={out}`") and status == 1
    run_search(SearchConfig.of(resume=str(out)), QUIET)
    assert (out / "policy.json").read_bytes() == (finished / "policy.json").read_bytes()


def save_half(out, tuned):
    save_params(out / "ranges", {"0": np.zeros(1)})
    raise KeyboardInterrupt


@pytest.mark.parametrize("place, stop", [("save_tuned", save_half), ("write_json", interrupt)])
def test_a_fine_tuning_that_is_stopped_while_it_writes_goes_on(finished, world, monkeypatch, place, stop):
    copy = shutil.copytree(finished, world / f"tuned_{place}")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        patch.setattr(haqjax.run.commands.finetune, place, stop)
        run_finetune(FinetuneConfig(run=str(copy), epochs=1), QUIET)
    assert describe_error(stopped.value)[0].endswith(f"go on with the same command, from the checkpoints in {copy}")
    assert (copy / "finetuned").is_dir() and not (copy / "finetune.json").exists()
    assert "policy, fine-tuned" not in run_evaluate(EvaluateConfig(run=str(copy)), QUIET)  # it may be half of one
    run_finetune(FinetuneConfig(run=str(copy), epochs=1), QUIET)
    assert (copy / "finetune.json").is_file() and not (copy / "finetuning").exists()
    assert "policy, fine-tuned" in run_evaluate(EvaluateConfig(run=str(copy)), QUIET)
    with pytest.raises(ValueError, match="finetuned exists and is never overwritten"):
        run_finetune(FinetuneConfig(run=str(copy), epochs=1), QUIET)
