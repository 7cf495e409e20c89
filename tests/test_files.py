"""Files appear whole or not at all, and nothing is overwritten by a new run."""

import csv
import dataclasses
import errno
import json
import os
import resource
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from haqjax import files


class Cost(NamedTuple):
    latency: float
    energy: float


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path
    seeds: tuple[int, ...]


@pytest.mark.parametrize(
    ("write", "value"),
    [(files.write_bytes, b"new"), (files.write_text, "new"), (files.write_json, [1]), (files.write_csv, [{"a": 1}])],
)
def test_a_broken_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, write, value):
    path = files.write_text(tmp_path / "policy.json", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["policy.json"]


def test_the_new_name_appears_after_the_data_is_on_disk(tmp_path, monkeypatch):
    path, seen = tmp_path / "a", []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append((path.exists(), os.fstat(file).st_size)), sync(file)))
    files.write_bytes(path, b"12345")
    assert seen == [(False, 5)]
    assert path.read_bytes() == b"12345"


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    path = files.write_text(tmp_path / "a", "")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_and_yaml_say_what_was_given(tmp_path):
    value = {
        "cost": Cost(0.001, float("nan")),
        "config": Config(Path("runs/a"), (0, 1)),
        "bits": jnp.array([[8, 4], [2, 8]]),
        "feasible": np.bool_(True),
        "count": np.int64(2**40),
        "name": "Größe",
    }
    expected = {
        "cost": {"latency": 0.001, "energy": None},
        "config": {"out": "runs/a", "seeds": [0, 1]},
        "bits": [[8, 4], [2, 8]],
        "feasible": True,
        "count": 2**40,
        "name": "Größe",
    }
    assert json.loads(files.write_json(tmp_path / "a.json", value).read_text()) == expected
    written = files.write_yaml(tmp_path / "a.yaml", value).read_text()
    assert yaml.safe_load(written) == expected
    assert list(yaml.safe_load(written)) == list(expected)


def test_a_value_that_cannot_be_written_is_named():
    with pytest.raises(ValueError, match="cannot write <object .* an? object"):
        files.plain({"a": [object()]})


def test_csv_reads_back(tmp_path):
    rows = [{"episode": 0, "note": 'a, "b"', "gain": np.float64(1) / 3}, {"episode": 1, "note": "", "gain": -2e-9}]
    with open(files.write_csv(tmp_path / "a.csv", rows), newline="") as file:
        back = list(csv.DictReader(file))
    assert [(int(row["episode"]), row["note"], float(row["gain"])) for row in back] == [
        (0, 'a, "b"', 1 / 3),
        (1, "", -2e-9),
    ]


def test_csv_without_rows_keeps_its_columns(tmp_path):
    assert files.write_csv(tmp_path / "a.csv", [], columns=["episode", "gain"]).read_text() == "episode,gain\n"


def test_csv_with_a_row_of_other_columns_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="row 1 .* expected .'a'"):
        files.write_csv(tmp_path / "a.csv", [{"a": 1}, {"b": 1}])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [files.new_folder, files.check_free])
@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_exists_is_never_overwritten(tmp_path, make, kind):
    path = tmp_path / "run"
    {"file": path.touch, "folder": path.mkdir, "dangling link": lambda: path.symlink_to("nowhere")}[kind]()
    with pytest.raises(ValueError, match="run exists and is never overwritten: choose another"):
        make(path)


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(ValueError, match="runs is no folder"):
        files.new_folder(tmp_path / "runs" / "mine")


def test_checking_makes_nothing(tmp_path):
    files.check_free(tmp_path / "runs" / "mine")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("check", [files.check_free, files.check_writable])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is empty"),
        ("a\0b", r"leave out the control character '\\x00'"),
        ("a\nb", r"leave out the control character '\\n'"),
        ("a\x1b[2J", r"leave out the control character '\\x1b'"),
        ("~/runs/mine", "'~' is not read as the home folder here: write it out, /"),
        ("x" * 300, "is a name of 300 bytes: at most 215 can be used"),
        ("runs/" + "ü" * 120, "is a name of 240 bytes: at most 215"),
        ("/".join(["x" * 100] * 40), "bytes: at most 3584 can be used"),
        ("/proc/haqjax", "/proc/haqjax cannot be made: /proc is no folder that can be written to"),
        ("/sys/haqjax/a", "/sys is no folder that can be written to"),
        ("file/a", "file is no folder that can be written to"),
        ("file/a/b", "file is no folder that can be written to"),
        ("dangling/a", "dangling is no folder that can be written to"),
        ("loop/a", "loop is no folder that can be written to"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_told_before_any_work(tmp_path, monkeypatch, check, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=message) as refused:
        check(name)
    assert str(refused.value).isprintable() and len(str(refused.value)) <= 500
    assert sorted(os.listdir(tmp_path)) == before


def test_the_longest_name_that_is_free_can_be_written(tmp_path):
    name = "x" * 215
    assert files.write_text(files.check_free(tmp_path / name), "a").read_text() == "a"
    files.new_folder(tmp_path / ("y" * 215))


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path):
    path = files.write_text(tmp_path / "policy.json", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as full:
            files.write_bytes(path, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (full.value.errno, full.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["policy.json"]


def test_a_folder_that_is_not_there_is_named_by_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        files.write_text(tmp_path / "no" / "such.csv", "")
    assert missing.value.filename == str(tmp_path / "no" / "such.csv")
