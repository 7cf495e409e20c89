"""A few steps of fine-tuning for many policies in one program: each as if it were alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune_world import TUNING, apply, apply_train, make_world
from haqjax.evaluation import make_evaluator, make_finetuned_evaluator
from haqjax.quantizers import quantize
from haqjax.quantizers.rounding_offsets import to_nearest
from haqjax.quantizers.trainable import as_ranges, begin
from haqjax.training.finetuning import make_program
from haqjax.training.finetuning_many import draw_batches, finetune_policies
from haqjax.training.steps import begin_state, take_step

POLICIES = jnp.array([[[3, 8], [2, 4]], [[8, 8], [8, 8]], [[2, 3], [32, 2]]])
STEPS = 7  # more than the 5 of an epoch


def options():
    return dict(steps=STEPS, key=jax.random.key(3), apply_train=apply_train)


@pytest.fixture(scope="module")
def world():
    return make_world(rounding="output")


@pytest.fixture(scope="module")
def alone(world):
    """The same steps under each policy in a Python loop, with the layers' own gradients."""
    params, ranges, data = world
    objective, optimiser = make_program(apply, apply_train, TUNING, STEPS)
    step = jax.jit(lambda state, *batch: take_step(objective, optimiser, state, *batch))
    batches = draw_batches(data, TUNING, STEPS, options()["key"])
    found = []
    for policy in POLICIES:
        learned = begin(params, policy, ranges)
        state = begin_state(learned, optimiser.init(learned))
        for images, labels in zip(*batches, strict=True):
            state = step(state, images, labels, (policy, ranges, params))
        found.append(state.learned)
    return found


def test_each_policy_is_tuned_as_if_alone(world, alone):
    params, ranges, data = world
    found = finetune_policies(apply, params, POLICIES, ranges, data, TUNING, **options())
    for number, expected in enumerate(alone):
        for leaf, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf[number], right, rtol=1e-4, atol=1e-5)


def test_accuracies_are_those_of_the_tuned_networks(world, alone):
    params, ranges, data = world
    evaluator = make_finetuned_evaluator(apply, params, data, ranges, data, TUNING, **options(), policies_at_once=2)
    found = jax.jit(lambda evaluator, policies: evaluator(policies))(evaluator, POLICIES)
    assert np.isnan(found.loss).all()
    for accuracy, policy, learned in zip(found.accuracy, POLICIES, alone, strict=True):
        after = as_ranges(apply, learned, data.images[:1], policy, ranges)
        answers = quantize(apply)(learned.params, data.images, policy, after).argmax(-1)
        assert float(accuracy) == pytest.approx((answers == data.labels).mean())
    untuned = make_evaluator(apply, params, data, to_nearest(ranges))(POLICIES)
    assert not jnp.array_equal(found.accuracy, untuned.accuracy)


def test_one_program_serves_every_policy_and_network(world):
    params, ranges, data = world
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return apply(params, x)

    evaluate = jax.jit(lambda evaluator, policies: evaluator(policies))
    tuning = dataclasses.replace(TUNING, distill=0.0)
    for scale in (1.0, 2.0):
        moved = jax.tree.map(lambda leaf: scale * leaf, params)  # noqa: B023
        evaluator = make_finetuned_evaluator(
            counted, moved, data, ranges, data, tuning, steps=2, key=jax.random.key(int(scale))
        )
        evaluate(evaluator, POLICIES)
        seen = seen if scale > 1 else len(traces)
        evaluate(evaluator, POLICIES[::-1])
    assert len(traces) == seen


def test_steps_are_counted(world):
    params, ranges, data = world
    with pytest.raises(ValueError, match="fine-tuning for 0 steps does nothing"):
        finetune_policies(apply, params, POLICIES, ranges, data, TUNING, steps=0, key=jax.random.key(0))
