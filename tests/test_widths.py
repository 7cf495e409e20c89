"""Bits that are none are refused by name in every place where a policy enters, and are NaN where they are traced."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haqjax
from haqjax.policies import actions
from haqjax.quantizers.codebook import make_codebook
from haqjax.quantizers.fractional import quantize_fractionally
from haqjax.quantizers.trainable import begin, quantize_learned
from haqjax.types import Ranges
from haqjax.widths import CODEBOOK, LINEAR, are_widths, check_widths

RNG = np.random.default_rng(0)
PARAMS = {"first": jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32), "second": jnp.ones((6, 3))}
IMAGES = RNG.normal(size=(8, 2, 2, 1)).astype(np.float32)
NONE = (-(2**31), -1, 0, 9, 16, 31, 33, 99, 2**31 - 1)


def apply(params, x):
    return jax.nn.relu(x.reshape(len(x), -1) @ params["first"]) @ params["second"]


@pytest.fixture(scope="module")
def ranges():
    return haqjax.calibrate(apply, PARAMS, [IMAGES], "max")


@pytest.fixture(scope="module")
def table():
    layers = haqjax.layers(apply, PARAMS, IMAGES[:1])
    return haqjax.cost_table(haqjax.machine("edge"), layers)


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("bits", NONE)
def test_no_door_lets_other_bits_in(ranges, table, bits, column):
    policy = np.full((2, 2), 8, np.int64)
    policy[1, column] = bits
    split = haqjax.Split(IMAGES, np.zeros(8, np.int32))
    evaluator = haqjax.make_evaluator(apply, PARAMS, split, ranges)
    free = haqjax.make_bounds(2, pinned={})
    doors = {
        "quantize": lambda: haqjax.quantize(apply)(PARAMS, IMAGES, policy, ranges),
        "evaluate": lambda: evaluator(policy[None]),
        "total_cost": lambda: haqjax.total_cost(table, policy),
        "project": lambda: haqjax.project(policy, table, free, haqjax.budget(table, latency=0.9)),
        "to_rows": lambda: actions.to_rows(policy, ["first", "second"]),
        "finetune": lambda: haqjax.finetune(
            apply, PARAMS, policy, ranges, split, batch_size=8, epochs=1, key=jax.random.key(0)
        ),
        "begin": lambda: begin(PARAMS, policy, ranges),
    }
    kind = ("weight", "activation")[column]
    for door in doors.values():
        with pytest.raises(ValueError, match=rf"layer ('second'|1) has {bits} {kind} bits: expected [12] to 8"):
            door()


@pytest.mark.parametrize("bits", [0, 9, 33, 2**40, 4.5, "8", None, True, [8]])
def test_a_policy_in_a_file_holds_widths_alone(tmp_path, bits):
    rows = [{"name": "first", "weight_bits": 8, "activation_bits": 32}, {"name": "second", "weight_bits": bits}]
    rows[1]["activation_bits"] = 8
    (tmp_path / "policy.json").write_text(json.dumps({"layers": rows}))
    with pytest.raises(ValueError, match=r"layer 'second' has weight_bits .*: expected 1 to 8, or 32"):
        actions.load(tmp_path / "policy.json", ["first", "second"])


@pytest.mark.parametrize("policy", [[[4.5, 8], [8, 8]], [[np.nan, 8], [8, 8]], [[True, True], [True, True]]])
def test_rows_are_made_of_whole_numbers(policy):
    with pytest.raises(ValueError, match="whole numbers of bits"):
        actions.to_rows(np.array(policy), ["first", "second"])


def test_one_bit_is_a_width_of_codebooks_alone(ranges):
    one = np.array([[1, 8], [1, 8]])
    with pytest.raises(ValueError, match="layer 'first' has 1 weight bits: expected 2 to 8"):
        haqjax.quantize(apply)(PARAMS, IMAGES, one, ranges)
    stored = Ranges(ranges.clip, ranges.signed, codebook=make_codebook(apply, PARAMS, IMAGES))
    assert np.isfinite(haqjax.quantize(apply)(PARAMS, IMAGES, one, stored)).all()
    with pytest.raises(ValueError, match="layer 'first' has 1 activation bits: expected 2 to 8"):
        haqjax.quantize(apply)(PARAMS, IMAGES, np.array([[1, 1], [1, 8]]), stored)


def test_traced_bits_that_are_none_give_nan_for_the_whole_policy(ranges, table):
    """None of it depends on whether a NaN survives the network: batches of 16 and more may lose one on a CPU."""
    images = np.tile(IMAGES, (8, 1, 1, 1))
    split = haqjax.Split(images, np.zeros(64, np.int32))
    evaluator = haqjax.make_evaluator(apply, PARAMS, split, ranges)
    forward, learned = haqjax.quantize(apply), quantize_learned(apply)
    fractional = quantize_fractionally(apply)

    @jax.jit
    def everything(policy):
        accuracy, loss = evaluator(policy[None])
        start = begin(PARAMS, policy, ranges)
        return (
            forward(PARAMS, images, policy, ranges),
            learned(start, images, policy, ranges),
            fractional(PARAMS, images, policy.astype(jnp.float32), ranges),
            (accuracy, loss),
            haqjax.total_cost(table, policy)[:4],
        )

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(everything(jnp.array([[8, 3], [2, 8]]))))
    for bits in NONE:
        for column in (0, 1):
            policy = jnp.full((2, 2), 8).at[1, column].set(bits)
            assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(everything(policy))), (bits, column)


def test_outputs_that_hold_no_nan_are_the_least_of_their_type(ranges):
    classify = haqjax.quantize(lambda params, x: apply(params, x).argmax(-1))
    found = jax.jit(classify)(PARAMS, IMAGES, jnp.array([[8, 8], [0, 8]]), ranges)
    assert (found == np.iinfo(np.int32).min).all()


@pytest.mark.parametrize("ranges", [None, 3, np.ones(3)])
def test_ranges_are_what_calibration_returns(ranges):
    with pytest.raises(ValueError, match="pass what `haqjax.calibrate` returns"):
        haqjax.quantize(apply)(PARAMS, IMAGES, np.full((2, 2), 8), ranges)


def test_a_mask_of_policies_equals_the_check_of_each():
    policies = RNG.choice(
        [-1, 0, 1, 2, 3, 8, 9, 31, 32, 33], (200, 3, 2), p=[0.02] * 3 + [0.3, 0.22, 0.3] + [0.02] * 2 + [0.06, 0.02]
    )
    for least in (LINEAR, CODEBOOK):
        for leave in (True, False):
            masks = are_widths(jnp.asarray(policies), least, leave=leave)
            assert 0 < masks.sum() < 200
            for policy, mask in zip(policies, masks, strict=True):
                good = all(
                    low <= bits <= 8 or (leave and bits == 32)
                    for row in policy
                    for low, bits in zip(least, row, strict=True)
                )
                assert good == bool(mask)
                if not good:
                    with pytest.raises(ValueError, match="bits: expected"):
                        check_widths(policy, least, leave=leave)
