"""A small search on several devices or by several processes; see test_mesh_search.py.

python mesh_search.py devices FOLDER         with two and eight of the process's devices
python mesh_search.py hosts FOLDER HOSTS     as one of several processes
"""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import haqjax.run.answers.common
import haqjax.run.evaluators
from haqjax import calibrate
from haqjax.evaluation import make_evaluator
from haqjax.run import SearchConfig, run_search
from haqjax.run.resumable import make_searcher
from haqjax.searchers.driver import drive
from haqjax.sharding import make_mesh
from run_world import apply, install, make_data, make_network

POLICIES, AT_ONCE = 5, 16  # neither divides by eight, nor do the micro-batches
MESHES = ((2, 1), (8, 4))  # devices, and how many along the axis `policy`; benchmarks/identity.py tries more


def search(out: Path, kind: str, hosts: str | None = None, mesh: jax.sharding.Mesh | None = None) -> Path:
    """Runs two rounds, and goes on with a third from what is on disk."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        patch.setattr(haqjax.run.answers.common, "save", lambda *figure: None)  # takes seconds
        if hosts is None:
            patch.setattr(haqjax.run.evaluators, "make_evaluation_mesh", lambda *asked: mesh)
        asked = dict(
            search=kind, layers="*=2-8", budget="0.6", episodes=8, rounding="nearest", out=str(out), hosts=hosts
        )
        console = Console(quiet=True)
        config = SearchConfig.of(**asked)
        run_search(config, console)
        searcher = drive(make_searcher(config))
        np.save(out.with_name("programs.npy"), [step._cache_size() for step in searcher])
        return run_search(SearchConfig.of(resume=str(out), episodes=12, hosts=hosts), console)


def evaluate(mesh: jax.sharding.Mesh | None = None) -> np.ndarray:
    """Accuracies and losses of random policies; ranges are the same to the last bit in every process."""
    network, split = make_network(), make_data().search
    ranges = calibrate(apply, network.params, [split.images], rounding="nearest", correct_bias=True)
    policies = np.random.default_rng(0).integers(2, 9, (POLICIES, 4, 2))
    evaluator = make_evaluator(apply, network.params, split, ranges, batch_size=AT_ONCE, mesh=mesh)
    found = jax.jit(lambda evaluator, policies: evaluator(policies))(evaluator, policies)
    return np.stack([*map(np.asarray, found)])


def main(kind: str, folder: Path, hosts: str | None = None) -> None:
    """Leaves run folders, and evaluations."""
    if kind == "hosts":
        search(folder, "random", hosts)
        return
    for devices, policies in MESHES:
        mesh = make_mesh(devices, policies=policies)
        np.save(folder / f"evaluation-{devices}-{policies}.npy", evaluate(mesh))
    search(folder / "run", "haq", mesh=make_mesh(8, policies=4))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
