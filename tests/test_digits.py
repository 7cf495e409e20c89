"""A trained network under uniform policies: what quantisation costs where there is something to lose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax import calibrate
from haqjax.data import load
from haqjax.evaluation import make_evaluator
from haqjax.models import build
from haqjax.quantizers.clipping import METHODS
from haqjax.training import fit

pytestmark = [pytest.mark.optimised, pytest.mark.slow]

WIDTHS = (32, 8, 6, 5, 4, 3, 2)


@pytest.fixture(scope="module")
def trained():
    data = load("digits", image_size=16)
    network = build("resnet20", classes=10, image_size=16, width=0.25, key=jax.random.key(0))
    recipe = dict(epochs=4, batch_size=32, learning_rate=0.1, shift=1)
    return data, network, fit(network, data.train, **recipe, key=jax.random.key(1))


@pytest.fixture(scope="module")
def accuracies(trained):
    """Accuracy on the search split by method and width."""
    data, network, params = trained
    evaluate = jax.jit(lambda evaluator, policies: evaluator(policies).accuracy)
    policies = jnp.stack([jnp.full((20, 2), bits) for bits in WIDTHS])

    def measure(method):
        batches = [data.train.images[:64], data.train.images[64:128]]
        ranges = calibrate(network.apply, params, batches, method)
        found = evaluate(make_evaluator(network.apply, params, data.search, ranges), policies)
        return dict(zip(WIDTHS, np.asarray(found).tolist(), strict=True))

    return {method: measure(method) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_8_bits_cost_at_most_a_point(accuracies, method):
    assert accuracies[method][8] >= accuracies[method][32] - 0.01


@pytest.mark.parametrize("method", METHODS)
def test_accuracy_falls_with_the_bits_within_noise(accuracies, method):
    row = accuracies[method]
    for more, fewer in zip(WIDTHS, WIDTHS[1:], strict=False):
        error = (row[more] * (1 - row[more]) / 360) ** 0.5
        assert row[fewer] <= row[more] + 2 * max(error, 0.005)
    assert row[2] < row[8] - 0.1
