"""Devices and processes that share a search find what one alone finds, to the last bit."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mesh_search
from haqjax.run.distributed import from_first, is_first
from haqjax.sharding import make_mesh, shard_policies, suggest_policy_devices
from haqjax.types import Evaluation, Evaluator

pytestmark = pytest.mark.optimised

SCRIPT = Path(mesh_search.__file__)


def begin(*words, devices=1):
    """Starts a process that has so many devices and as many threads as this one has."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PJRT_NPROC": str(os.cpu_count())}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}  # last bits are compared
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(jax.config.jax_compilation_cache_max_size),  # else others cannot write
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, words)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(*processes):
    said = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said


def read(folder):
    """What a search found, and all that it tried."""
    return json.loads((folder / "policy.json").read_text()), (folder / "episodes.csv").read_text()


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    end(begin("devices", folder, devices=8))
    return folder


@pytest.fixture(scope="module")
def alone():
    return mesh_search.evaluate()


def test_every_mesh_evaluates_alike(on_eight, alone):
    """One test for all meshes: workers would each start the eight devices."""
    assert len(np.unique(alone[1])) == mesh_search.POLICIES
    for devices, policies in mesh_search.MESHES:
        found = np.load(on_eight / f"evaluation-{devices}-{policies}.npy")
        np.testing.assert_array_equal(found, alone, err_msg=f"{devices} devices, {policies} for policies")


def test_eight_devices_find_what_one_finds(on_eight, tmp_path):
    assert read(on_eight / "run") == read(mesh_search.search(tmp_path / "alone", "haq"))


def test_an_agent_is_compiled_once_for_eight_devices(on_eight):
    assert np.load(on_eight / "programs.npy").tolist() == [1, 1]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    end(*(begin("hosts", tmp_path / "both", f"127.0.0.1:{port},{number}/2") for number in range(2)))
    assert read(tmp_path / "both") == read(mesh_search.search(tmp_path / "alone", "random"))


def test_devices_are_divided_so_that_each_has_least_to_do():
    for devices, policies, batches in ((1, 4, 6), (8, 4, 6), (8, 4, 1), (8, 3, 5), (6, 16, 2), (4, 1, 9)):
        rounds = {
            along: -(-policies // along) * -(-batches // (devices // along))
            for along in range(1, devices + 1)
            if devices % along == 0
        }
        assert rounds[suggest_policy_devices(devices, policies, batches)] == min(rounds.values())


def test_an_evaluator_without_micro_batches_is_sharded_by_policies():
    def evaluate(evaluator, policies, least):
        sums = evaluator.params * policies.sum((1, 2))
        return Evaluation(sums, sums + least)

    evaluator = Evaluator(evaluate, jnp.float32(2), None, None, None, extra=jax.random.key(0))
    policies = np.random.default_rng(0).integers(2, 9, (5, 3, 2))
    accuracy, loss = shard_policies(evaluator, make_mesh(1))(policies, 0.5)
    np.testing.assert_array_equal(accuracy, 2.0 * policies.sum((1, 2)))
    np.testing.assert_array_equal(loss, accuracy + 0.5)


def test_one_process_is_the_first_and_asks_nobody():
    assert is_first() and from_first(lambda: "alone") == "alone"


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="1 devices do not divide into 2 for policies"):
        make_mesh(1, policies=2)
