import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.policies.actions import load, save, to_actions, to_bits, to_rows, uniform
from haqjax.policies.bounds import make_bounds
from haqjax.types import Bounds

NAMES = ("stem", "block/depthwise", "head")


@pytest.mark.parametrize(("low", "high"), [(2, 8), (1, 8), (3, 5), (4, 4)])
def test_every_width_owns_an_equal_share_of_the_actions(low, high):
    actions = (np.arange(4200) + 0.5) / 4200  # 4200 is a multiple of 1..7: no action falls on an edge
    bits = to_bits(jnp.asarray(actions)[:, None, None].repeat(2, -1), make_bounds(1, low, high, pinned={}))
    width, count = np.unique(bits[:, 0, 0], return_counts=True)
    expected = low + np.floor(actions * (high - low + 1))
    np.testing.assert_array_equal(bits[:, 0, 1], expected)
    assert width.tolist() == list(range(low, high + 1))
    assert abs(count - 4200 / len(width)).max() <= 1


@pytest.mark.parametrize("action", [0.0, 1.0, -3.0, 7.0])
def test_actions_at_and_beyond_the_ends_stay_within_the_bounds(action):
    """With low = 1, half-to-even rounding alone would give 0 bits."""
    bits = to_bits(jnp.full((2, 2), action), make_bounds(2, low=1, pinned={1: 6}))
    end = 8 if action >= 1 else 1
    assert bits.dtype == jnp.int32
    assert bits.tolist() == [[end, end], [6, 6]]


def test_actions_and_bits_are_inverse_for_batches_and_uneven_bounds():
    key = jax.random.key(0)
    limits = Bounds(jnp.asarray([[1, 2], [8, 8], [3, 5]]), jnp.asarray([[8, 7], [8, 8], [4, 5]]))
    bits = jax.random.randint(key, (50, 4, 3, 2), limits.low[None, None], limits.high[None, None] + 1)
    actions = to_actions(bits, limits)
    np.testing.assert_array_equal(to_bits(actions, limits), bits)
    middle = (np.asarray(bits) - np.asarray(limits.low) + 0.5) / np.asarray(limits.high - limits.low + 1)
    np.testing.assert_allclose(actions, middle, rtol=1e-6)


def test_some_widths_own_equal_shares_of_the_actions():
    allowed = np.zeros((1, 2, 8), bool)
    allowed[0, 0, [1, 3, 7]] = allowed[0, 1, [3, 7]] = True
    limits = make_bounds(1, pinned={}, allowed=allowed)
    assert (limits.low.tolist(), limits.high.tolist()) == ([[2, 4]], [[8, 8]])
    actions = jnp.linspace(0, 1, 601)[:, None, None] * jnp.ones((1, 1, 2))
    bits = np.asarray(to_bits(actions, limits))
    for column, widths in ((0, (2, 4, 8)), (1, (4, 8))):
        found, counts = np.unique(bits[:, 0, column], return_counts=True)
        assert found.tolist() == list(widths)
        np.testing.assert_allclose(counts, 601 / len(widths), atol=2)
        back = to_bits(to_actions(jnp.asarray(bits), limits), limits)
        np.testing.assert_array_equal(back[..., column], bits[..., column])
    assert uniform(5, limits).tolist() == [[4, 4]]
    assert uniform(3, limits).tolist() == [[2, 4]], "the nearest below, else the fewest"


def test_layers_pinned_by_default_get_the_widest_that_there_is():
    allowed = np.isin(np.arange(1, 9), (2, 4)) & np.ones((3, 2, 1), bool)
    assert make_bounds(3, allowed=allowed).low.tolist() == [[4, 4], [2, 2], [4, 4]]
    with pytest.raises(ValueError, match="layer 1 has no width left for its weights"):
        make_bounds(3, low=5, allowed=allowed)


def test_tied_layers_share_what_all_of_them_may_have():
    allowed = np.ones((4, 2, 8), bool)
    allowed[3, 0, 5:] = False
    limits = make_bounds(4, pinned={}, allowed=allowed, tied=[(1, -1)])
    assert limits.high.tolist() == [[8, 8], [5, 8], [8, 8], [5, 8]]
    bits = to_bits(jax.random.uniform(jax.random.key(0), (50, 4, 2)), limits)
    np.testing.assert_array_equal(bits[:, 1], bits[:, 3])
    assert len(np.unique(np.asarray(bits[:, 1, 0]))) == 4
    with pytest.raises(ValueError, match="in another group already"):
        make_bounds(4, tied=[(1, 2), (2, 3)])
    with pytest.raises(ValueError, match="tied layer 9 does not exist"):
        make_bounds(4, tied=[(1, 9)])


def test_bounds_pin_the_first_and_the_last_layer_by_default():
    limits = make_bounds(4, low=(2, 3), high=(6, 7))
    assert limits.low.tolist() == [[8, 8], [2, 3], [2, 3], [8, 8]]
    assert limits.high.tolist() == [[8, 8], [6, 7], [6, 7], [8, 8]]
    assert make_bounds(1).low.tolist() == [[8, 8]]
    assert make_bounds(2, pinned={-1: 4}).low.tolist() == [[2, 2], [4, 4]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 0}, "low=0"),
        ({"high": 9}, "high=9"),
        ({"low": 5, "high": 4}, "low=5, high=4"),
        ({"low": (2, 6), "high": (8, 5)}, r"high=\(8, 5\)"),
        ({"pinned": {3: 8}}, "layer 3 does not exist: the network has 3"),
        ({"pinned": {0: 16}}, "pinned={0: 16}"),
    ],
)
def test_impossible_bounds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_bounds(3, **arguments)


@pytest.mark.parametrize("bits", range(1, 9))
def test_uniform_stays_within_the_bounds_for_traced_bits_too(bits):
    limits = make_bounds(3, low=2, high=6)
    expected = min(max(bits, 2), 6)
    assert jax.jit(uniform)(bits, limits).tolist() == [[8, 8], [expected, expected], [8, 8]]


def test_a_saved_policy_comes_back_with_what_was_written_about_it(tmp_path):
    bits = np.array([[8, 8], [2, 7], [3, 32]], np.int32)
    save(tmp_path / "policy.json", bits, NAMES, network="tiny", cost={"latency_s": 0.5})
    np.testing.assert_array_equal(load(tmp_path / "policy.json", NAMES), bits)
    document = json.loads((tmp_path / "policy.json").read_text())
    assert document["network"] == "tiny" and document["cost"] == {"latency_s": 0.5}
    assert document["layers"][1] == {"name": "block/depthwise", "weight_bits": 2, "activation_bits": 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"layers": [', "Expecting value"),
        ('{"network": "tiny"}', "no list `layers`"),
        ("[1, 2]", "no list `layers`"),
        ('{"layers": [1, 2, 3]}', "no list `layers`"),
        ('{"layers": []}', "policy has 0 layers, the network 3"),
        (
            '{"layers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}',
            "layer 0 of the policy is 'a', of the network 'stem'",
        ),
        ('{"layers": [{"name": "stem"}, {}, {}]}', "'stem' has weight_bits None"),
        ('{"layers": [{"name": "stem", "weight_bits": 4, "activation_bits": 4.5}, {}, {}]}', "activation_bits 4.5"),
        ('{"layers": [{"name": "stem", "weight_bits": 0, "activation_bits": 4}, {}, {}]}', "weight_bits 0"),
    ],
)
def test_a_policy_of_another_network_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load(path, NAMES)
    assert "policy.json" in str(error.value) and "\n" not in str(error.value)


def test_rows_need_one_name_a_layer():
    with pytest.raises(ValueError, match=r"shape \(2, 2\), the network has 3 layers"):
        to_rows(np.full((2, 2), 8), NAMES)
