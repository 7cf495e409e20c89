"""Statistics measured again under a policy, against batch norm written out."""

import jax
import jax.numpy as jnp
import numpy as np

from haqjax import calibrate
from haqjax.quantizers.fake_quantize import quantize_weights
from haqjax.training import reestimate_statistics

MOMENTUM = 0.9


def apply(params, x):
    return (x @ params["w"] - params["mean"][None]) * params["scale"][None]


def apply_train(params, x):
    y = x @ params["w"]
    moved = params | {"mean": MOMENTUM * params["mean"] + (1 - MOMENTUM) * y.mean(0)}
    return (y - y.mean(0)[None]) * params["scale"][None], moved


def test_statistics_become_those_of_the_rounded_layer():
    keys = jax.random.split(jax.random.key(0), 2)
    x = np.asarray(jax.random.normal(keys[0], (50, 4)) + 1)
    params = {"w": jax.random.normal(keys[1], (4, 3)), "mean": jnp.zeros(3), "scale": jnp.ones(3)}
    ranges, policy = calibrate(apply, params, [x], rounding="nearest"), jnp.array([[2, 32]])
    found = reestimate_statistics(apply_train, params, policy, ranges, [x, x, x])
    rounded = (x @ np.asarray(quantize_weights(apply, params, x, policy, ranges)[0])).mean(0)
    np.testing.assert_allclose(found["mean"], (1 - MOMENTUM**3) * rounded, rtol=1e-4)
    assert not np.allclose(rounded, (x @ np.asarray(params["w"])).mean(0), rtol=0.05)
    for name in ("w", "scale"):
        np.testing.assert_array_equal(found[name], params[name])
