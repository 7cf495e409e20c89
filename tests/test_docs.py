"""The examples of the pages run and print what they say, and the site builds without a warning."""

import ast
import contextlib
import doctest
import importlib
import importlib.util
import io
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import haqjax

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ["getting-started.md", *sorted(f"howto/{path.name}" for path in (DOCS / "howto").glob("*.md"))]
PACKAGES = ("haqjax", *sorted(f"haqjax.{path.parent.name}" for path in (ROOT / "haqjax").glob("*/__init__.py")))
PATH = re.compile(r"(?<![\w./-])haqjax(?!\.md\b)(?:\.[A-Za-z_]\w*)+")
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


def texts() -> list[tuple[str, str]]:
    """Place and text of all pages, notebooks and docstrings."""
    files = [ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "experiments").glob("*.ipynb")]
    found = [(str(path.relative_to(ROOT)), path.read_text()) for path in files]
    for path in (ROOT / "haqjax").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        documented = [n for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        found += [(str(path.relative_to(ROOT)), ast.get_docstring(node) or "") for node in documented]
    return found


@pytest.fixture(scope="module")
def modules() -> dict:
    """All modules of the package, imported, by name."""
    names = [module.name for module in pkgutil.walk_packages(haqjax.__path__, "haqjax.")]
    return {name: importlib.import_module(name) for name in names if not name.endswith("__main__")}


def reach(path: str):
    """What a person who imported `haqjax` and its modules gets by the dots of a path."""
    value = haqjax
    for name in path.split(".")[1:]:
        value = getattr(value, name)
    return value


def test_no_module_is_hidden_by_a_function_of_its_name(modules):
    assert [name for name, module in modules.items() if reach(name) is not module] == []


def test_every_path_in_a_text_leads_somewhere(modules):
    lost = []
    for place, text in texts():
        for path in sorted(set(PATH.findall(text))):
            try:
                reach(path)
            except AttributeError:
                lost.append(f"{place}: {path}")
    assert lost == []


def test_the_new_paths_of_the_changelog_lead_somewhere(modules):
    rows = re.findall(r"^\| `(haqjax\.[\w.]+)` \| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert rows and len({old for old, _ in rows}) == len(rows)
    for _, new in rows:
        for path in re.findall(r"`([\w.]+)`", new):
            reach(path)


def test_a_path_that_leads_nowhere_is_found():
    assert PATH.findall("`haqjax.layers(apply)`, haqjax/hardware, x.haqjax.y, from haqjax.data import Split") == [
        "haqjax.layers",
        "haqjax.data",
    ]
    with pytest.raises(AttributeError):
        reach("haqjax.search.random")


def test_the_example_of_the_readme_finds_a_policy():
    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    imports = [line for line in example.splitlines() if re.match(r"import|from", line)]
    assert imports == ["import haqjax, jax"]  # one line is all it takes
    random = np.random.default_rng(0)
    images = random.random((64, 2, 2, 2), dtype=np.float32)

    def apply(params, x):
        x = x.reshape(len(x), -1)
        for name in "abcdef":
            x = jax.nn.relu(x @ params[name])
        return x

    params = {name: random.normal(size=(8, 8)).astype(np.float32) for name in "abcdef"}
    names = {"apply": apply, "params": params, "images": images, "held_out": images, "x": images, "float_accuracy": 1.0}
    names["labels"] = np.argmax(apply(params, images), axis=1).astype(np.int32)
    exec(compile(example, "README.md", "exec"), names)
    assert names["found"].policy.shape == (6, 2) and names["logits"].shape == (64, 8)
    most = haqjax.total_cost(names["table"], np.full((6, 2), 8)).latency
    assert float(names["found"].cost.latency) <= 0.6001 * float(most)


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
    first = {getattr(haqjax, name) for name in haqjax.__all__}
    for package in PACKAGES:
        if package == "haqjax.run":  # what the commands do: the command line is the way in
            continue
        module = importlib.import_module(package)
        assert hasattr(module, "__all__"), f"{package} does not say what is public"
        elsewhere = set() if package == "haqjax" else {n for n in module.__all__ if _is_in(getattr(module, n), first)}
        assert {f"{package}.{name}" for name in set(module.__all__) - elsewhere} <= documented


def _is_in(value, values) -> bool:
    return any(value is other for other in values)


def test_every_folder_has_a_page():
    folders = {package.removeprefix("haqjax.") for package in PACKAGES} - {"run"}
    assert folders <= {path.stem for path in (DOCS / "api").glob("*.md")}


def test_each_equation_of_the_method_leads_to_its_function(site):
    named = set(re.findall(r"`(haqjax\.[\w.]+)` \|$", (DOCS / "method.md").read_text(), flags=re.MULTILINE))
    linked = re.findall(r'href="api/\w+\.html#[\w.]+"[^>]*><code[^>]*>(.*?)</code>', (site / "method.html").read_text())
    assert named and named <= {re.sub("<.*?>", "", text) for text in linked}


def test_a_record_shows_its_fields_and_a_function_its_shapes(site):
    text = re.sub("<.*?>", "", (site / "api/types.html").read_text())
    assert "s per batch of the machine" in text
    projection = re.sub("<.*?>", "", (site / "api/haqjax.html").read_text()).partition("haqjax.project(")[2]
    assert "policy: Int[Array," in projection[:200]


def test_pages_ask_nothing_of_the_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"
