"""Whatever goes wrong in a command is one line and a status; --debug shows the traceback besides."""

import errno
import os
import subprocess
import sys
import warnings

import jax
import pytest

import haqjax.cli
from haqjax.cli import describe_error, main, read_config
from haqjax.run import TrainConfig

WITHIN = str(haqjax.cli.PACKAGE / "run" / "x.py")


def start(monkeypatch, raised, *words):
    """Runs a command that raises `raised` in line 3 of haqjax/run/x.py; returns the exit status."""

    def command(config, console):
        exec(compile("\n\nraise raised", WITHIN, "exec"), {"raised": raised})

    monkeypatch.setitem(haqjax.cli.COMMANDS, "train", (TrainConfig, command))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "the tests' own")
    monkeypatch.setattr(sys, "argv", ["haqjax", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


INTERNAL = [
    TypeError("'NoneType' object is not iterable"),
    OverflowError("int too big to convert"),
    RecursionError("maximum recursion depth exceeded"),
    KeyError("layers"),
    IndexError("list index out of range"),
    AssertionError(),
    NotImplementedError("sparse"),
    ArithmeticError("x\n" * 1000),
]


@pytest.mark.parametrize("raised", INTERNAL, ids=lambda raised: type(raised).__name__)
def test_what_nobody_expected_is_one_line_with_its_place_and_status_70(raised, monkeypatch, capsys):
    assert start(monkeypatch, raised, "train") == 70
    said = capsys.readouterr().err
    assert said.startswith(f"haqjax: internal error: {type(raised).__name__}: ")
    assert said.endswith(" (haqjax/run/x.py:3); run again with --debug to see the traceback\n")
    assert said.count("\n") == 1 and len(said) <= 501


@pytest.mark.parametrize("words", [["--debug", "train"], ["train", "--debug"], ["train", "--seed", "1", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands_and_keeps_the_status(words, monkeypatch, capsys):
    assert start(monkeypatch, KeyError("layers"), *words) == 70
    traced, _, last = capsys.readouterr().err.strip().rpartition("\n")
    assert traced.startswith("Traceback (most recent call last)") and "KeyError: 'layers'" in traced
    assert last.startswith("haqjax: internal error: KeyError: 'layers' (haqjax/run/x.py:3)")


def test_memory_that_runs_out_says_what_to_make_smaller(monkeypatch, capsys):
    for raised in (MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")):
        assert start(monkeypatch, raised, "train") == 70
        said = capsys.readouterr().err
        assert said.startswith("haqjax: not enough memory: make image_size, batch_size, parallel") and len(said) < 500


@pytest.mark.parametrize(
    "raised, line, status",
    [
        (ValueError("a\x1b[2J\n b" + "c" * 999), "haqjax: a\\x1b[2J b" + "c" * 480 + " …", 2),
        (RuntimeError("no policy"), "haqjax: no policy", 1),
        (KeyboardInterrupt(), "haqjax: interrupted before there was a result", 130),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "haqjax: what reads its output has ended", 1),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x/a\n.png"),
            "haqjax: x/a .png: No space left on device; nothing of that name was written; make room and ask again",
            2,
        ),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), b"x"), "haqjax: x: Permission denied", 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_faults_of_known_kinds_are_told_as_they_are(raised, line, status):
    assert describe_error(raised) == (line, status)


def test_a_note_on_how_to_go_on_is_never_cut_off():
    error = ValueError("x" * 1000)
    error.add_note("go on with `make search RESUME=runs/mine`")
    line, _ = describe_error(error)
    assert len(line) == 500 and line.endswith("x …; go on with `make search RESUME=runs/mine`")


@pytest.mark.parametrize(
    "source, words",
    [
        ("def f():\n    return 1 / 0\n", "mine.py:2, in f, raised ZeroDivisionError: division by zero"),
        ("def f():\n    raise ValueError('my own')\n", "mine.py:2, in f, raised ValueError: my own"),
        ("import numpy\ndef f():\n    return numpy.zeros(-1)\n", "mine.py:3, in f, raised ValueError: negative dim"),
        ("def f(:\n", "mine.py:1 raised SyntaxError"),
    ],
)
def test_the_users_own_function_is_named_where_it_raises(source, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "the tests' own")
    monkeypatch.setattr(sys, "argv", ["haqjax", "table", "--model", "mine:f", "--out", "x.csv"])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main()
    sys.modules.pop("mine", None)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert words in said and "--debug" in said
    assert not (tmp_path / "x.csv").exists()


def test_output_that_nobody_reads_ends_the_command_in_one_line(tmp_path):
    words = f"{sys.executable} -m haqjax table --model resnet20 --image-size 32 --out x.csv"
    script = f"({words}; echo status $? >&2) | true"
    ended = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.stderr == "haqjax: what reads its output has ended\nstatus 1\n"


def test_a_warning_is_one_line_and_each_text_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", haqjax.cli.make_warner())
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for text in ("latency falls\n from 3 to 4 bits", "energy falls", "latency falls from 3 to 4 bits"):
            warnings.warn(text, stacklevel=1)
    said = "haqjax: warning: latency falls from 3 to 4 bits\nhaqjax: warning: energy falls\n"
    assert capsys.readouterr().err == said


def test_help_names_debug(capsys):
    with pytest.raises(SystemExit) as stopped:
        read_config(["--help"])
    assert stopped.value.code == 0 and "--debug" in capsys.readouterr().out
