"""Two runs at once share one cached float network and one cache of compiled programs."""

import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from rich.console import Console

import haqjax.run.float_network
from haqjax.models import build, outline
from haqjax.run.float_network import load_network
from run_world import make_data

QUIET = Console(quiet=True)


def test_two_that_train_the_same_network_at_once_both_have_it(tmp_path, monkeypatch):
    """Both find no cached network, train, and save it under one name, at the same time."""
    monkeypatch.setenv("HAQJAX_CACHE", str(tmp_path))
    data, met, found, errors = make_data(), threading.Barrier(2, timeout=60), [], []
    shapes, trained = outline("resnet20", classes=4, image_size=8), []

    def train(network, *rest):
        fresh = build("resnet20", classes=4, image_size=8, key=jax.random.key(0))
        trained.append(1)
        met.wait()  # the other has found nothing either
        return fresh

    def run():
        try:
            found.append(load_network(shapes, data, None, QUIET).params)
        except Exception as error:
            errors.append(error)

    save, alone = haqjax.run.float_network.save_params, threading.Lock()

    def save_alone(*given):
        with alone:  # Orbax is not made for two threads of one process; these stand for two processes
            save(*given)

    monkeypatch.setattr(haqjax.run.float_network, "train_network", train)
    monkeypatch.setattr(haqjax.run.float_network, "save_params", save_alone)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(trained) == 2
    found.append(load_network(shapes, data, None, QUIET).params)
    leaves = [jax.tree.leaves(params) for params in found]
    for same in zip(*leaves, strict=True):
        assert all(np.array_equal(same[0], other) for other in same)
    assert len(trained) == 2 and not list((tmp_path / "networks").glob(".*"))


@pytest.mark.slow
def test_two_searches_at_once_with_cold_caches_end_alike(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"HAQJAX_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    words = [
        "search",
        "--budget",
        "0.6",
        "--model",
        "resnet20",
        "--image-size",
        "8",
        "--search",
        "random",
        "--episodes",
        "40",
        "--rounding",
        "nearest",
    ]
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "haqjax", *words, "--out", str(tmp_path / name)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    said = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    for name in ("policy.json", "episodes.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not list((tmp_path / "cache" / "networks").glob(".*"))
