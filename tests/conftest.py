"""Laws of every test, the place of external data, and a count of compilations: `pytest --compilations`."""

import collections
import os
import subprocess
import sys
from pathlib import Path

# Programs of tests run for milliseconds: half of the time to compile them would go into making them fast. In the
# environment, for processes that tests start; a test that runs long is marked `optimised`.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import pytest

ROOT = Path(__file__).parents[1]

# XLA's older way to emit code for a CPU, in one piece, compiles in a third of the time. A jaxlib that does not know
# these flags ends the process that reads them, so another process is asked first: once, for workers inherit them.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
ASK = "import jaxlib.xla_client as client; client.make_cpu_client()"
if "XLA_FLAGS" not in os.environ:
    asked = subprocess.run([sys.executable, "-c", ASK], env=os.environ | {"XLA_FLAGS": QUICK}, capture_output=True)
    if asked.returncode == 0:
        os.environ["XLA_FLAGS"] = QUICK

# The first law, that a warning is an error, is in pyproject.toml.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_compilation_cache_max_size", 2**30)  # bytes; with a limit JAX locks the folder
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True, scope="module")
def optimised(request):
    """Compiles with optimisations for the modules that are marked so."""
    if request.node.get_closest_marker("optimised") is None:
        yield
        return
    jax.clear_caches()  # of programs that other modules compiled
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of images, weights and reference tables that are not part of the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the external data in {folder}")
    return folder


STAGES = ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")  # of a compilation, as JAX times them


def pytest_addoption(parser):
    parser.addoption("--compilations", action="store_true", help="list the tests that compile most, and for how long")


def pytest_configure(config):
    if not config.getoption("--compilations"):
        return
    config.compilations, config.running = collections.defaultdict(collections.Counter), "collection"

    def note(event: str, seconds: float, **_) -> None:
        for stage in STAGES:
            if event.endswith(f"/{stage}_duration"):
                config.compilations[config.running][stage] += seconds
                config.compilations[config.running]["count"] += stage == STAGES[-1]

    jax.monitoring.register_event_duration_secs_listener(note)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.config.running = item.nodeid


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--compilations"):
        rows = sorted(config.compilations.items(), key=lambda row: -sum(row[1][stage] for stage in STAGES))
        total = sum((one for _, one in rows), collections.Counter())
        for name, one in [("all tests", total), *rows[:30]]:
            times = ", ".join(f"{stage} {one[stage]:.1f} s" for stage in STAGES)
            terminalreporter.write_line(f"{one['count']:5d} programs, {times}  {name}")
