"""The examples of the pages run and print what they say, and the site builds without a warning."""

import contextlib
import doctest
import importlib
import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ["getting-started.md", *sorted(f"howto/{path.name}" for path in (DOCS / "howto").glob("*.md"))]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page: str) -> list[tuple[str, str, int]]:
    """Kind, text and line of each block."""
    text = (DOCS / page).read_text()
    return [(found[1], found[2], text[: found.start()].count("\n") + 2) for found in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_a_page_print_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names, printed = {"__name__": "page"}, ""
    for kind, text, line in blocks(page):
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * (line - 1) + text, str(DOCS / page), "exec"), names)
            printed = out.getvalue()
        else:
            assert doctest.OutputChecker().check_output(text, printed, OPTIONS), f"{page}:{line} prints\n{printed}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_are_targets_of_make(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^ *|`)make ([a-z-]+)", (DOCS / page).read_text(), flags=re.MULTILINE)) <= targets


def load(name: str):
    """A module beside the pages."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_code_that_makes_pages_does_what_its_examples_say():
    assert doctest.testmod(load("autoapi")).failed == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. A name that does not exist, a link to nowhere, a page that nothing leads to: all are warnings."""
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("needs the extra `docs`")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", out / "doctrees", DOCS]
    done = subprocess.run([*command, out / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_every_public_name_is_on_a_page(site):
    text = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    documented = {found for found in re.findall(r'id="(haqjax\.[\w.]+)"', text)}
    last = {name.rpartition(".")[2] for name in documented}
    for package in ["haqjax", *(f"haqjax.{p}" for p in ("search", "train", "hardware", "models", "data", "report"))]:
        names = set(importlib.import_module(package).__all__)
        assert {f"haqjax.{name}" for name in names} <= documented if package == "haqjax" else names <= last


def test_each_equation_of_the_method_leads_to_its_function(site):
    named = set(re.findall(r"`(haqjax\.[\w.]+)` \|$", (DOCS / "method.md").read_text(), flags=re.MULTILINE))
    linked = re.findall(r'href="api/\w+\.html#[\w.]+"[^>]*><code[^>]*>(.*?)</code>', (site / "method.html").read_text())
    assert named and named <= {re.sub("<.*?>", "", text) for text in linked}


def test_a_record_shows_its_fields_and_a_function_its_shapes(site):
    text = re.sub("<.*?>", "", (site / "api/core.html").read_text())
    assert "s per batch of the machine" in text
    projection = re.sub("<.*?>", "", (site / "api/haqjax.html").read_text()).partition("haqjax.project(")[2]
    assert "policy: Int[Array," in projection[:200]


def test_pages_ask_nothing_of_the_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"
