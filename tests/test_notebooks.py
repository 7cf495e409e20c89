"""The notebooks run from top to bottom at quick size, say what is true, and are kept without outputs."""

import json
import os
import re
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from filelock import FileLock

import haqjax
from haqjax.hardware.bismo import count_policy_work

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments"
NAMES = ("colab_tpu", "library_tour")
SECONDS = 300  # that a cell may take, with nothing in the cache on a busy machine


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(name: str) -> list[str]:
    return [cell.source for cell in read(name).cells if cell.cell_type == "code"]


def cell_with(name: str, words: str) -> str:
    (found,) = [source for source in code(name) if words in source]
    return found


# What is kept.


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_holds_its_text_alone(name):
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None and cell.metadata == {}
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "accelerator", "colab"}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_names_no_place_of_one_machine(name):
    for source in code(name):
        assert not re.findall(r"""["'](?:/\w|~/|[A-Z]:\\)[^"'\s]*""", source)


@pytest.mark.parametrize("name", NAMES)
def test_a_badge_opens_the_notebook_in_colab(name):
    link = r"\[!\[Open in Colab\]\(\S+\.svg\)\]\((https://colab\.research\.google\.com/\S+)\)"
    (found,) = re.findall(link, read(name).cells[0].source)
    assert found.endswith(f"/experiments/{name}.ipynb")


def test_the_colab_notebook_asks_for_a_tpu_and_says_that_its_time_is_not_measured():
    assert read("colab_tpu").metadata["accelerator"] == "TPU"
    assert "has not been measured" in read("colab_tpu").cells[0].source


# What it does.

# What a cell after the last one tells of the notebook's variables.
FACTS = {
    "colab_tpu": """
told = dict(folder=str(folder), policy=run_data.policy, gap=gap, errors=errors, uniform=uniform[1:3], found=found[1:3])
""",
    "library_tour": """
told = dict(
    names=layers.names, macs=layers.macs, policy=found.policy, latency=table.latency, budget=budget, cost=found.cost,
    by_latency=by_latency, cycles=cycles, ports=ports, feasible=projected.feasible.all(), best=best,
    fractions=fractions, plain=table_of_plain.macs, accuracies=accuracies, reference=reference.value,
    measured=measured.latency, layers={name: getattr(layers, name) for name in vars(layers)},
)
""",
}
TELL = """
import json
import numpy as np
from pathlib import Path
Path("told.json").write_text(json.dumps(told, default=lambda value: np.asarray(value).tolist()))
"""


def execute(name: str, folder: Path) -> None:
    """Runs a notebook in a folder, in its own process, and keeps it there with its outputs."""
    notebook = read(name)
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS[name] + TELL))
    folder.mkdir()
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    run = Path(sys.executable).with_name("jupyter-execute")
    done = subprocess.run(
        [run, "--inplace", f"--timeout={SECONDS}", "--kernel_name=python3", path], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def run_once(name: str, tmp_path_factory) -> SimpleNamespace:
    """Runs a notebook for all workers; returns what it told and the outputs of each code cell."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    base = tmp_path_factory.mktemp(name) if run is None else tmp_path_factory.getbasetemp().parent
    folder = base / f"{name}-{run}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            execute(name, folder)
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"][:-1]
    told = json.loads((folder / "told.json").read_text())
    return SimpleNamespace(folder=folder, outputs=outputs, told=SimpleNamespace(**told))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """What a kernel inherits; JAX keeps what it compiles where the tests keep it."""
    told = {
        "HAQJAX_QUICK": "1",
        "HAQJAX_CACHE": str(tmp_path_factory.mktemp("cache")),
        "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**30),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": str(ROOT),
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in told.items():
            patch.setenv(key, value)
        yield os.environ


@pytest.fixture(scope="module")
def colab(environment, tmp_path_factory):
    return run_once("colab_tpu", tmp_path_factory)


@pytest.fixture(scope="module")
def tour(environment, tmp_path_factory):
    return run_once("library_tour", tmp_path_factory)


def printed(ran: SimpleNamespace) -> str:
    return "".join(out.text for outputs in ran.outputs for out in outputs if out.get("name") == "stdout")


def figures(ran: SimpleNamespace) -> int:
    return sum("image/png" in out.get("data", {}) for outputs in ran.outputs for out in outputs)


@pytest.mark.slow
def test_the_colab_notebook_finds_a_policy_and_draws_it(colab):
    run = colab.folder / colab.told.folder
    kept = json.loads((run / "policy.json").read_text())
    assert [[row["weight_bits"], row["activation_bits"]] for row in kept["layers"]] == colab.told.policy
    assert kept["costs"]["policy"]["latency_s"] <= kept["budget"]["latency_s"] * (1 + 1e-6)
    assert figures(colab) == 3
    assert "minutes on" in printed(colab)


@pytest.mark.slow
def test_the_colab_notebook_tells_the_gap_to_uniform_bits_with_its_error(colab):
    told = colab.told
    kept = json.loads((colab.folder / told.folder / "policy.json").read_text())["accuracies"]["report"]
    found, uniform = kept["policy"], kept["uniform"]
    assert told.gap == pytest.approx(100 * (found - uniform))
    variances = [p * (1 - p) / kept["images"] for p in (uniform, found)]
    assert np.square(told.errors) == pytest.approx(variances)
    assert f"{told.gap:+.1f} ± {100 * sum(variances) ** 0.5:.1f} points" in printed(colab)


@pytest.mark.slow
def test_the_tour_reads_layers_off_both_networks(tour):
    assert tour.told.names == ["stem", "depthwise", "pointwise", "last", "head"]
    places = 8 * 8
    assert tour.told.macs == [places * 27 * 16, places * 9 * 16, places * 16 * 32, places // 4 * 288 * 32, 320]
    assert tour.told.plain == [3 * places * 32, 320]


@pytest.mark.slow
def test_the_tour_compiles_once_for_all_policies(tour):
    assert printed(tour).count("traced") == 1
    assert "all at once: (7, 16, 10)" in printed(tour)


@pytest.mark.slow
def test_the_tour_keeps_to_its_budget(tour):
    told = tour.told
    policy, latency = np.array(told.policy), np.array(told.latency)
    spent = sum(latency[at, w - 1, a - 1] for at, (w, a) in enumerate(policy))
    assert spent == pytest.approx(told.cost[0]) and spent <= told.budget[0] * (1 + 1e-6)
    assert told.budget[0] == pytest.approx(0.3 * latency[:, 7, 7].sum())
    assert told.cost[2] <= told.budget[2] == 6 * 1024
    assert policy[0].tolist() == policy[-1].tolist() == [8, 8]
    assert told.feasible
    assert re.search(r"found +\d+\.\d ± \d+\.\d ", printed(tour)) and figures(tour) == 3
    full = latency[:, 7, 7].sum()
    for fraction, best in zip(told.fractions, told.best, strict=True):
        assert sum(latency[at, w - 1, a - 1] for at, (w, a) in enumerate(best)) <= fraction * full * (1 + 1e-6)


@pytest.mark.slow
def test_the_tours_network_has_learned(tour):
    assert tour.told.reference > 0.8
    assert tour.told.accuracies[-1] > 0.8 and len(tour.told.accuracies) == 7


@pytest.mark.slow
def test_the_tours_table_of_a_device_has_the_widths_of_its_file(tour):
    measured = np.array(tour.told.measured)
    macs = np.array(tour.told.macs)
    for bits, as_wide in ((1, 2), (2, 2), (3, 4), (5, 8), (8, 8)):
        np.testing.assert_allclose(measured[:, bits - 1, bits - 1], 1e-6 * (5 + macs * as_wide / 8000))
    assert "stem's weights: [2, 4, 8]" in printed(tour)


@pytest.mark.slow
def test_the_tours_gradient_is_the_slope_of_the_table(tour):
    latency, slope = np.array(tour.told.latency), np.array(tour.told.by_latency)
    corner = latency[:, 3:5, 3:5]  # 4.5 bits: halfway between the entries for 4 and 5
    np.testing.assert_allclose(slope[:, 0], (corner[:, 1] - corner[:, 0]).mean(-1), rtol=1e-4)
    np.testing.assert_allclose(slope[:, 1], (corner[:, :, 1] - corner[:, :, 0]).mean(-1), rtol=1e-4)


@pytest.mark.slow
def test_the_tours_family_counts_what_each_machine_does(tour):
    told = tour.told
    names = told.layers.pop("names")
    table = haqjax.types.LayerTable(
        tuple(names), **{key: np.array(value) for key, value in told.layers.items() if value is not None}
    )
    for port, count in zip(told.ports, told.cycles, strict=True):
        one = haqjax.machine("edge").spec._replace(port_bits=port)
        assert count_policy_work(one, table, np.array(told.policy)).cycles.sum() == count


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_installed_outside_colab(name, colab, tour):
    ran = {"colab_tpu": colab, "library_tour": tour}[name]
    at = next(i for i, source in enumerate(code(name)) if "SOURCE = " in source)
    assert ran.outputs[at] == []
    assert not (ran.folder / "held.txt").exists() and not (ran.folder / "drive").exists()


# Colab, with a stand-in for its modules, pip and what is installed.


class Pip:
    """Writes down what is asked of pip, and installs in a dictionary."""

    def __init__(self, there: dict[str, str], brings: dict[str, str], takes_along: dict[str, str]):
        self.there, self.brings, self.takes_along = there, brings, takes_along
        self.calls, self.held = [], {}

    def run(self, command, **options):
        words = command[command.index("install") + 1 :]
        limits = Path(words[words.index("--constraint") + 1]).read_text().splitlines()
        self.held = dict(line.split("==") for line in limits)
        asked = words[words.index("--constraint") + 2 :]
        self.calls.append(asked)
        for name in (re.match(r"\w+", word)[0] for word in asked if word != "--no-deps"):
            self.there[name] = self.brings[name]
        self.there.update({} if "--no-deps" in asked else self.takes_along)
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    def distributions(self):
        return [SimpleNamespace(metadata={"Name": name}, version=version) for name, version in self.there.items()]


REQUIRES = ["jax>=0.8", "flax>=0.12", "tyro>=0.9", "numpy>=2.0", 'tensorflow>=2; extra == "prepare"', "PyYAML>=6"]
THERE = {"jax": "0.9.0", "jaxlib": "0.9.0", "libtpu": "0.0.30", "numpy": "2.1.0", "flax": "0.11.0", "pyyaml": "6.0"}


@pytest.fixture
def in_colab(monkeypatch, tmp_path):
    """Runs the cell that installs; returns pip's stand-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))

    def run(name: str, there: dict[str, str], brings: dict[str, str], takes_along: dict[str, str] | None = None) -> Pip:
        pip = Pip(dict(there), {"haqjax": "0.1.0"} | brings, takes_along or {})
        monkeypatch.setattr("subprocess.run", pip.run)
        monkeypatch.setattr(metadata, "distributions", pip.distributions)
        monkeypatch.setattr(metadata, "requires", lambda package: REQUIRES)
        monkeypatch.setattr(metadata, "version", lambda package: pip.there[package])
        exec(cell_with(name, "SOURCE = "), {"__name__": "cell"})
        return pip

    return run


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_lacking_is_installed_and_jax_is_held(name, in_colab):
    pip = in_colab(name, THERE, {"flax": "0.12.1", "tyro": "0.9.2"})
    assert pip.calls == [["--no-deps", "haqjax"], ["flax>=0.12", "tyro>=0.9"]]
    assert pip.held == {"jax": "0.9.0", "jaxlib": "0.9.0", "libtpu": "0.0.30", "numpy": "2.1.0"}


def test_a_jax_that_has_changed_is_told(in_colab):
    with pytest.raises(AssertionError, match="versions changed from .*'jax': '0.9.0'.* to .*'jax': '0.10.0'"):
        in_colab("colab_tpu", THERE, {"tyro": "0.9.2", "flax": "0.12.1"}, takes_along={"jax": "0.10.0"})


def test_a_jax_that_is_too_old_is_left_alone(in_colab):
    with pytest.raises(RuntimeError, match="haqjax needs jax>=0.8.*choose a newer runtime"):
        in_colab("colab_tpu", THERE | {"jax": "0.7.2"}, {})


def test_both_notebooks_install_alike():
    assert cell_with("colab_tpu", "SOURCE = ") == cell_with("library_tour", "SOURCE = ")


def test_the_run_goes_to_drive_on_colab(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    mounted = []

    def mount(path: str) -> None:
        mounted.append(Path(path))
        (Path(path) / "MyDrive").mkdir(parents=True)

    google = types.ModuleType("google.colab")
    google.drive = SimpleNamespace(mount=mount)
    monkeypatch.setitem(sys.modules, "google.colab", google)
    for name in ("runs/one", "weights"):
        Path(name).mkdir(parents=True)
        Path(name, "file").write_text(name)
    names = dict(COLAB=True, WEIGHTS=None, weights="weights", folder=Path("runs/one"), Path=Path, START=0.0)
    exec(cell_with("colab_tpu", "drive.mount"), names | {"time": __import__("time"), "jax": __import__("jax")})
    (kept,) = (mounted[0] / "MyDrive" / "haqjax").iterdir()
    assert kept.name.startswith("one-") and (kept / "file").read_text() == "runs/one"
    assert (kept / "weights" / "file").read_text() == "weights"
