"""The commands that the documents promise exist, and do what they say with whatever is typed."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALWAYS_TAKEN = {"HAQJAX_CACHE", "PYTHON"}
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
IMPORTED_BY_OTHERS = {"array-record", "filelock", "importlib-resources", "pillow"}  # by TFDS, JAX, TFDS, TFDS


def recipe_of(target: str) -> str:
    """The commands of a target."""
    return re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE)[1]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def third_party_imports() -> set[str]:
    nodes = [n for path in (ROOT / "haqjax").rglob("*.py") for n in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"haqjax"}


def test_every_import_is_declared_and_every_dependency_is_used():
    owners = importlib.metadata.packages_distributions()
    always = third_party_imports() - {"tensorflow"}  # only `haqjax.data.prepare` needs it: an extra
    imported = {normal(owner) for name in always for owner in owners[name]}
    declared = {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in PROJECT["dependencies"]}
    assert imported - declared - {"jaxlib"} == set(), "imported, not declared"
    assert declared - imported - IMPORTED_BY_OTHERS == set(), "declared, not used"


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_documents_name_targets_that_exist(document):
    named = set(re.findall(r"(?:^ *|`)make ([a-z-]+)", (ROOT / document).read_text(), flags=re.MULTILINE))
    assert named <= TARGETS


def test_continuous_integration_runs_make_test():
    commands = [
        line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith(("#", "cd", "set"))
    ]
    assert commands == ["make test"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_tests_that_take_minutes_run_where_no_one_waits():
    recipes = {name: recipe_of(name) for name in ("test", "test-all")}
    assert '-m "not slow"' in recipes["test"]
    assert recipes["test-all"] == recipes["test"].replace(' -m "not slow"', "")
    assert "run: make test-all\n" in (ROOT / ".github/workflows/ci.yml").read_text()


def taken_by(target: str) -> dict[str, str]:
    """The variables that a target takes, each with its flag."""
    lists = dict(re.findall(r"^override (\w+)_FLAGS := ((?:.*\\\n)*.*)$", MAKEFILE, flags=re.MULTILINE))
    words = lists.get(target, "").replace("$(DATA_FLAGS)", lists["DATA"])
    return dict(re.findall(r"(\w+):([\w-]*)", words))


@pytest.mark.parametrize("command", ["search", "train", "evaluate", "finetune", "report"])
def test_flags_of_make_are_flags_of_the_program(command):
    passed = {f"--{flag}" for flag in taken_by(command).values()}
    assert passed
    known = subprocess.run(
        [sys.executable, "-m", "haqjax", command, "--help"], capture_output=True, text=True, check=True
    )
    assert passed <= set(re.findall(r"--[\w-]+", known.stdout))


# What make itself does, with a stand-in for Python that writes down how it is called.
STAND_IN = """#!/bin/sh
for word do printf '%s\\n' "$word"; done >> "$CALLS"
case "$*" in
  *version_info*) exit "${OLD:-0}" ;;
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip install"*) exit "${BROKEN:-0}" ;;
  "-m haqjax"*) exit "${STATUS:-0}" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Runs make in a folder with the Makefile alone; returns its status, the calls of Python, and the error output."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    python, calls = tmp_path / "stand in", tmp_path / "calls"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(*words: str, **environment: str):
        calls.write_text("")
        base = {"PATH": os.environ["PATH"], "CALLS": str(calls), "PYTHON": str(python)}
        done = subprocess.run(["make", *words], cwd=tmp_path, env=base | environment, capture_output=True, text=True)
        return done.returncode, calls.read_text().splitlines(), done.stderr

    return run


def test_help_lists_every_target_and_no_other():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", said, flags=re.MULTILINE)) == TARGETS
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)[1].split()
    assert set(phony) - {"always"} == TARGETS


def test_help_explains_every_variable_once():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    explained = re.findall(r"^  ([A-Z][A-Z_]+)  +\S", said, flags=re.MULTILINE)
    assert sorted(explained) == sorted({name for target in TARGETS for name in taken_by(target)} | ALWAYS_TAKEN)


def test_what_setup_can_add_are_the_extras_of_the_package():
    extras = re.search(r"^override EXTRAS := (.*)$", MAKEFILE, flags=re.MULTILINE)[1].split()
    assert {*extras, "dev"} == set(PROJECT["optional-dependencies"])


VALUES = (
    *("two words", 'a"b', "it's", "; touch harm", "`touch harm`", "*", "-1", "--help", "a\\b", "a\\", "#", "%", "a\nb"),
    *("$(shell touch harm)", "$$(touch harm)", "$(touch harm)", "a b$HOME", "${HOME}", "$(", "$@", "$(error harm)"),
    *("$(eval override PY := touch harm)", "$(info $(shell touch harm))", "&& touch harm", "| touch harm", "x "),
    *("=", ":=a", "é"),
)


@pytest.fixture
def ready(make, tmp_path):
    """Make in a folder in which everything is installed."""
    shutil.copytree(
        tmp_path, tmp_path / ".venv/bin", ignore=lambda *_: ["Makefile", "pyproject.toml", "calls", ".venv"]
    )
    (tmp_path / ".venv/bin/stand in").rename(tmp_path / ".venv/bin/python")
    (tmp_path / ".venv/.installed-dev").touch()
    return make


def harmed(folder: Path) -> bool:
    return any(folder.rglob("harm*"))


@pytest.mark.parametrize("value", VALUES)
def test_a_variable_stays_one_word_that_nothing_expands(ready, tmp_path, value):
    called = ["-m", "haqjax", "search", "--model=resnet50", *f"--out={value}".split("\n")]
    assert ready("search", "MODEL=resnet50", f"OUT={value}", "HAQJAX_CACHE=" + value)[:2] == (0, called)
    assert ready("search", "MODEL=resnet50", OUT=value, HAQJAX_CACHE=value, EXTRA=value)[:2] == (0, called)
    assert not harmed(tmp_path)


@pytest.mark.parametrize("target", ["search", "train", "evaluate", "finetune"])
def test_no_variable_is_expanded(ready, tmp_path, target):
    value = "$(shell touch harm)`touch harm`"
    flags = [f"--{flag}={value}" for flag in taken_by(target).values()]
    status, calls, _ = ready(target, *(f"{name}={value}" for name in taken_by(target)))
    assert (status, calls) == (0, ["-m", "haqjax", target, *flags])
    assert not harmed(tmp_path)


@pytest.mark.parametrize("name", ["MODEL", "OUT", "HAQJAX_CACHE", "PYTHON"])
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_value_is_told_and_no_default_takes_its_place(ready, name, value):
    status, calls, said = ready("search", f"{name}={value}")
    assert (status, calls) == (2, []) and said.count("\n") == 1 and f" {name} is empty" in said
    assert ready("search", **{name: value})[:2] == (
        0,
        ["-m", "haqjax", "search", *([f"--{name.lower()}={value}"] if value and name in ("MODEL", "OUT") else [])],
    )


STRANGE = ("MODLE", "CURDIR", "MAKE", "MAKEFLAGS", "MAKEOVERRIDES", ".SHELLFLAGS", "name", "1", "EXTRA", "EPOCHS")


@pytest.mark.parametrize(
    "words",
    [("train", "HW=edge"), ("help", "MODEL=resnet50"), ("test", "RUN=a")]
    + [("search", f"{name}=$(shell touch harm)") for name in STRANGE],
)
def test_a_variable_that_the_target_does_not_take_is_told(ready, tmp_path, words):
    status, calls, said = ready(*words)
    assert (status, calls) == (2, []) and said.count("\n") == 1 and f" {words[1].split('=')[0]}=: see make help" in said
    assert not harmed(tmp_path)


@pytest.mark.parametrize("name", ["PY", "SHELL", "INSTALLED", "EXTRAS", "search_FLAGS", "given", "flags", "goals"])
def test_no_part_of_the_recipes_is_replaced(ready, tmp_path, name):
    ready("search", f"{name}=touch harm; $(shell touch harm)")
    assert not harmed(tmp_path)


@pytest.mark.parametrize(
    "value", ["gpu", "cuda tpu", "%", "x$$(touch harm)", "$(shell touch harm)", 'x"`touch harm`"', "x'; touch harm; '"]
)
def test_an_extra_is_one_of_a_list(ready, tmp_path, value):
    for status, calls, said in (ready("setup", f"EXTRA={value}"), ready("setup", EXTRA=value)):
        assert (status, calls) == (2, []) and said.count("\n") == 1 and "EXTRA is one of bench cuda docs" in said
    assert ready(f".venv/.installed-{value}")[0] == 2
    assert not harmed(tmp_path)
    assert ".[cuda]" in ready("setup", "EXTRA=cuda")[1]


def test_report_takes_folders_and_no_patterns(ready, tmp_path):
    (tmp_path / "a b").mkdir()
    for given, words in (
        ("a b", ["a b"]),
        ("a c", ["a", "c"]),
        ("*", ["*"]),
        ("$(shell touch harm)", ["$(shell", "touch", "harm)"]),
    ):
        assert ready("report", f"RUN={given}")[1] == ["-m", "haqjax", "report", "--run", *words]
    status, calls, said = ready("report", "RUN=runs/a --out=b")
    assert (status, calls) == (2, []) and "begins with -" in said
    assert not harmed(tmp_path)


def test_a_failing_search_fails_make_with_status_2(make):
    make("setup")
    assert make("search", "BUDGET=0", STATUS="2")[0] == 2


def test_setup_runs_once_and_after_a_change_of_requirements(make, tmp_path):
    assert "--editable" in make("setup")[1]
    assert make("setup")[1] == []
    os.utime(tmp_path / "pyproject.toml", (2**32, 2**32))  # later than any installation
    assert "--editable" in make("setup")[1]


def test_an_installation_that_broke_off_is_done_again(make):
    assert make("setup", BROKEN="1")[0] != 0
    assert "--editable" in make("setup")[1]


def test_an_environment_whose_python_has_gone_is_made_again(make, tmp_path):
    make("setup")
    (tmp_path / ".venv/bin/python").unlink()
    assert "venv" in make("setup")[1]


def test_a_python_too_old_is_named(make, tmp_path):
    status, calls, said = make("setup", OLD="1")
    assert status != 0
    assert "venv" not in calls
    assert said.splitlines()[0].startswith("haqjax needs Python 3.11 or newer") and str(tmp_path) in said
