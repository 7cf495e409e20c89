"""Rules on names, against what they say."""

import numpy as np
import pytest

from haqjax.policies.bounds import ladder, make_bounds
from haqjax.policies.rules import bounds_by_rules

NAMES = ["stem", "blocks.0.depthwise", "blocks.0.project", "blocks.1.depthwise", "blocks.1.project", "classifier"]


def widths(limits):
    """For each layer the widths of weights and of activations."""
    found, count = (np.asarray(x) for x in ladder(limits))
    return [[found[layer, k, : count[layer, k]].tolist() for k in (0, 1)] for layer in range(len(found))]


def test_without_rules_all_is_as_usual():
    limits, usual = bounds_by_rules(NAMES), make_bounds(6)
    assert limits.allowed is None and limits.tied is None
    np.testing.assert_array_equal(limits.low, usual.low)
    np.testing.assert_array_equal(limits.high, usual.high)


def test_a_rule_replaces_the_widths_of_the_layers_that_it_matches():
    found = widths(bounds_by_rules(NAMES, "*.depthwise=2,4,8/5-6; blocks.1.*=3"))
    every = list(range(2, 9))
    assert found == [[[8], [8]], [[2, 4, 8], [5, 6]], [every, every], [[3], [3]], [[3], [3]], [[8], [8]]]


def test_a_rule_frees_the_first_layer_too():
    assert widths(bounds_by_rules(NAMES, "stem=2-8"))[0] == [list(range(2, 9))] * 2


def test_rules_keep_to_what_the_machine_has():
    available = np.isin(np.arange(1, 9), (2, 4)) & np.ones((6, 2, 1), bool)
    found = widths(bounds_by_rules(NAMES, "*.project=3-8", available=available))
    assert found == [[[4], [4]], [[2, 4]] * 2, [[4], [4]], [[2, 4]] * 2, [[4], [4]], [[4], [4]]]
    with pytest.raises(ValueError, match="no width that the machine has for the weights of layer blocks.0.project"):
        bounds_by_rules(NAMES, "*.project=8", available=available)


def test_ties_are_groups_of_patterns():
    limits = bounds_by_rules(NAMES, tied="*.project; blocks.0.depthwise+blocks.1.depthwise")
    assert limits.tied.tolist() == [0, 1, 2, 1, 2, 5]


@pytest.mark.parametrize(
    ("rules", "tied", "message"),
    [
        ("block.*=4", "", "'block.\\*' matches none of the 6 layers"),
        ("stem", "", "has no '='"),
        ("stem=9", "", "widths are 8, or 2,4,8, or 3-6"),
        ("stem=", "", "widths are"),
        ("stem=4/4/4", "", "widths are"),
        ("stem=4/x", "", "widths are"),
        ("stem=x,4", "", "widths are"),
        ("stem=6-3", "", "widths are"),
        ("", "head*", "matches none"),
        ("", "stem", "ties stem to nothing"),
    ],
)
def test_a_rule_that_says_nothing_is_refused(rules, tied, message):
    with pytest.raises(ValueError, match=message):
        bounds_by_rules(NAMES, rules, tied)
