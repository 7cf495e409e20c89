"""Devices that share a batch compute what one computes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from finetune_world import TUNING
from haqjax.sharding import make_mesh


def test_one_two_and_four_devices_have_the_same_loss():
    program = "from finetune_world import tell_losses; [tell_losses(devices) for devices in (1, 2, 4)]"
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, env=environment, capture_output=True, check=True
    )
    losses = np.array(told.stdout.split(), float).reshape(3, TUNING.epochs)
    assert losses[0, -1] < losses[0, 0]
    np.testing.assert_allclose(losses[1:], np.stack([losses[0]] * 2), rtol=1e-6)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="a mesh of 1000 devices needs from 1 to the"):
        make_mesh(1000)


def test_mesh_of_all_devices_is_the_default():
    assert make_mesh().size == jax.device_count()
    assert make_mesh(jax.devices()[:1]).size == 1
