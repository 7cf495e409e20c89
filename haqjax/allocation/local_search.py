"""Local search by swaps, for losses that add up: Lagrangian prices (Shoham and Gersho 1988), then swaps of bits."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from haqjax.allocation.additive import Sensitivity, to_pairs
from haqjax.allocation.choices import Choices, list_choices
from haqjax.policies.bisection import bisect
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, Bounds, Budget, CostTable

BISECTIONS = 40  # of the interval of a price's logarithm
# Of that logarithm, for costs as fractions of the limit and losses as fractions of their span.
LOWEST, HIGHEST = -20.0, 10.0
SWEEPS = 3  # over several resources
ROUNDING = 1e-9
STEP = 2  # bits, of weights and activations together, by which a layer changes in a swap

Taken = Int[np.ndarray, "G"]  # the choice of each group


class Space(NamedTuple):
    """Choices of groups of tied layers, padded to K choices each."""

    group_of: Int[np.ndarray, "L"]
    bits: Int[np.ndarray, "G K 2"]
    valid: Bool[np.ndarray, "G K"]
    fractions: Float[np.ndarray, "R G K"]  # of the limits; 0 where padded
    room: Float[np.ndarray, "R"]
    close: Bool[np.ndarray, "G K K"]  # choices within `STEP` bits of each other


def make_space(table: CostTable, bounds: Bounds, budget: Budget) -> Space:
    """Lays choices out as arrays; a limit on peak memory, which is no sum, is left out."""
    choices: Choices = list_choices(np.zeros((len(table), WIDTHS, WIDTHS)), table, bounds, budget)
    group, count = choices.group, np.bincount(choices.group)
    column = np.arange(len(group)) - (np.cumsum(count) - count)[group]
    shape = (len(count), count.max())
    bits, valid, fractions = np.ones((*shape, 2), int), np.zeros(shape, bool), np.zeros((len(choices.room), *shape))
    bits[group, column], valid[group, column], fractions[:, group, column] = choices.bits, True, choices.fractions
    apart = np.abs(bits[:, :, None] - bits[:, None]).sum(axis=-1)
    close = (apart > 0) & (apart <= STEP) & valid[:, :, None] & valid[:, None]
    return Space(choices.group_of, bits, valid, fractions, choices.room, close)


def lay_out(space: Space, sensitivity: Sensitivity) -> Float[np.ndarray, "G K"]:
    """Computes the loss of each choice, summed over its group; infinite where padded."""
    total = np.zeros((len(space.bits), WIDTHS, WIDTHS))
    np.add.at(total, space.group_of, to_pairs(sensitivity))
    rows = np.arange(len(total))[:, None]
    return np.where(space.valid, total[rows, space.bits[..., WEIGHT] - 1, space.bits[..., ACTIVATION] - 1], np.inf)


def as_policy(space: Space, taken: Taken) -> Int[np.ndarray, "L 2"]:
    """Makes the policy of these choices."""
    return space.bits[np.arange(len(taken)), taken][space.group_of].astype(np.int32)


def solve_by_prices(space: Space, losses: Float[np.ndarray, "G K"], steps: int = 8) -> Taken:
    """Finds a policy near the least loss within the budget: every layer chooses by prices, then swaps use what is left.

    A resource's price is the least at which the choices keep its limit, found by bisection, one resource after
    another (Shoham and Gersho 1988). With several limits the result may be some way off the least loss.
    """
    prices = np.zeros(len(space.room))
    span = np.ptp(losses[space.valid]) or 1.0

    def keeps(resource: int, price: float) -> bool:
        prices[resource] = price
        return bool(_left(space, _choose(space, losses, prices))[resource] >= -ROUNDING)

    for _ in range(1 if len(prices) < 2 else SWEEPS):
        for resource in range(len(prices)):
            if keeps(resource, 0.0):
                continue
            log_price = bisect(lambda log: keeps(resource, span * np.exp(log)), HIGHEST, LOWEST, BISECTIONS)  # noqa: B023
            prices[resource] = span * np.exp(log_price)
    return improve_by_swaps(space, losses, _choose(space, losses, prices), steps)


def improve_by_swaps(space: Space, losses: Float[np.ndarray, "G K"], taken: Taken, steps: int = 8) -> Taken:
    """Takes the best change of one layer, or swap between two, within the budget; so many times at most."""
    taken = taken.copy()
    for _ in range(steps):
        best = next(swaps(space, losses, taken), None)
        if best is None or best[0] >= -ROUNDING:
            break
        taken = best[1]
    return taken


def swaps(space: Space, losses: Float[np.ndarray, "G K"], taken: Taken) -> Iterator[tuple[float, Taken]]:
    """Yields policies within the budget with other bits in one or two layers: (change of loss, policy), best first."""
    groups = np.arange(len(taken))
    group, choice = np.nonzero(space.close[groups, taken])
    loss = losses[group, choice] - losses[group, taken[group]]
    cost = space.fractions[:, group, choice] - space.fractions[:, group, taken[group]]
    loss, cost = np.append(loss, 0.0), np.pad(cost, ((0, 0), (0, 1)))  # and a move that changes nothing
    group = np.append(group, -1)
    total, left = loss[:, None] + loss, _left(space, taken)
    possible = np.triu(group[:, None] != group, 1)
    for resource, room in enumerate(left):
        possible &= cost[resource][:, None] + cost[resource] <= room + ROUNDING
    first, second = np.nonzero(possible)
    for at in np.argsort(total[first, second], kind="stable"):
        changed, moves = taken.copy(), [m for m in (first[at], second[at]) if m < len(choice)]
        changed[group[moves]] = choice[moves]
        yield float(total[first[at], second[at]]), changed


def _choose(space: Space, losses: Float[np.ndarray, "G K"], prices: Float[np.ndarray, "R"]) -> Taken:
    return np.argmin(losses + np.tensordot(prices, space.fractions, 1), axis=1)


def _left(space: Space, taken: Taken) -> Float[np.ndarray, "R"]:
    return space.room - space.fractions[:, np.arange(len(taken)), taken].sum(axis=-1)
