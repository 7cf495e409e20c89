"""Policies: how many bits every layer's weights and activations get."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, Bounds, LayerTable

PINNED = {0: WIDTHS, -1: WIDTHS}  # first and last layer keep 8 bits (Wang et al. 2019, section 4)


def bounds(
    layers: LayerTable | int,
    low: int | tuple[int, int] = 2,
    high: int | tuple[int, int] = WIDTHS,
    pinned: Mapping[int, int] | None = None,
) -> Bounds:
    """The fewest and the most bits that a search may give each layer.

    Args:
      layers: the network's layers, or how many there are.
      low: fewest bits, for weights and activations alike or as a pair (weights, activations). Weights of one bit
        need a binary code: symmetric linear quantisation has no level left but zero.
      high: most bits, in the same form. A pair such as `low=(2, 8), high=(8, 8)` searches the weights only.
      pinned: bits of the layers that no search may change, by index (negative from the end); by default 8 for the
        first and the last layer, `{}` for none.

    Returns:
      Bounds, each int32 [L, 2]; a pinned entry has `low == high`.

    Raises:
      ValueError: a width outside 1..8, `low` above `high`, or an index that is no layer.

    >>> bounds(3, low=2, high=6).high.tolist()
    [[8, 8], [6, 6], [8, 8]]
    """
    count = layers if isinstance(layers, int) else len(layers)
    least, most = (np.empty((count, 2), np.int32) for _ in range(2))
    least[:], most[:] = low, high
    for index, bits in (PINNED if pinned is None else pinned).items():
        if not -count <= index < count:
            raise ValueError(f"pinned layer {index} does not exist: the network has {count} layers")
        least[index] = most[index] = bits
    if least.min() < 1 or most.max() > WIDTHS or np.any(least > most):
        raise ValueError(f"bits must satisfy 1 <= low <= high <= {WIDTHS}, got low={low}, high={high}, pinned={pinned}")
    return Bounds(jnp.asarray(least), jnp.asarray(most))


def to_bits(actions: Float[Array, "*n L 2"], bounds: Bounds) -> Int[Array, "*n L 2"]:
    """Turns actions into bits: `round(low - 0.5 + action (high - low + 1))`, clipped into the bounds.

    The rule is HAQ's (Wang et al. 2019, section 3.2): every width owns an equal share of [0, 1].

    >>> to_bits(jnp.asarray([[0.0, 1.0], [0.5, 0.9]]), bounds(2, pinned={})).tolist()
    [[2, 8], [5, 8]]
    """
    low, high = _like(actions, bounds)
    bits = jnp.round(low - 0.5 + actions * (high - low + 1))
    return jnp.clip(bits.astype(jnp.int32), low, high)


def to_actions(policy: Int[Array, "*n L 2"], bounds: Bounds) -> Float[Array, "*n L 2"]:
    """The action in the middle of those that `to_bits` turns into these bits.

    >>> to_actions(jnp.asarray([[2, 8]]), bounds(1, low=1, pinned={})).tolist()
    [[0.1875, 0.9375]]
    """
    low, high = _like(policy, bounds)
    return (policy - low + 0.5) / (high - low + 1)


def uniform(bits: int | Int[Array, ""], bounds: Bounds) -> Int[Array, "L 2"]:
    """The same bits everywhere, as far as the bounds allow: pinned layers keep theirs.

    >>> uniform(4, bounds(3)).tolist()
    [[8, 8], [4, 4], [8, 8]]
    """
    return jnp.clip(jnp.full(bounds.low.shape, bits, jnp.int32), bounds.low, bounds.high)


def to_rows(policy: Int[Array, "L 2"], names: Sequence[str]) -> list[dict[str, Any]]:
    """One row a layer, ready for JSON.

    >>> to_rows(np.array([[8, 4]]), ["stem"])
    [{'name': 'stem', 'weight_bits': 8, 'activation_bits': 4}]
    """
    if np.shape(policy) != (len(names), 2):
        raise ValueError(f"policy has shape {np.shape(policy)}, the network has {len(names)} layers")
    pairs = np.asarray(policy).tolist()
    return [
        {"name": name, "weight_bits": pair[WEIGHT], "activation_bits": pair[ACTIVATION]}
        for name, pair in zip(names, pairs, strict=True)
    ]


def from_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Int[Array, "L 2"]:
    """The policy that `to_rows` wrote, for the network with these layers.

    Raises:
      ValueError: the rows belong to another network, lack an entry, or hold something else than bits.

    >>> from_rows([{"name": "stem", "weight_bits": 8, "activation_bits": 4}], ["stem"]).tolist()
    [[8, 4]]
    """
    if len(rows) != len(names):
        raise ValueError(f"the policy has {len(rows)} layers, the network {len(names)}")
    policy = np.empty((len(names), 2), np.int32)
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        if row.get("name") != name:
            raise ValueError(f"layer {index} of the policy is {row.get('name')!r}, of the network {name!r}")
        policy[index, WEIGHT] = _read_bits(row, "weight_bits")
        policy[index, ACTIVATION] = _read_bits(row, "activation_bits")
    return jnp.asarray(policy)


def save(path: str | Path, policy: Int[Array, "L 2"], names: Sequence[str], **about: Any) -> None:
    """Writes a policy as JSON: `about` (network, hardware, costs: anything JSON knows), then `layers`."""
    document = {**about, "layers": to_rows(policy, names)}
    Path(path).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load(path: str | Path, names: Sequence[str]) -> Int[Array, "L 2"]:
    """Reads a policy that `save` wrote, for the network with these layers.

    Raises:
      ValueError: the file is not such a policy, or belongs to another network.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["layers"]
        return from_rows(rows, names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = "it has no list `layers`" if isinstance(error, (KeyError, TypeError, AttributeError)) else error
        raise ValueError(f"cannot read the policy in {path}: {reason}") from error


def _read_bits(row: Mapping[str, Any], key: str) -> int:
    bits = row.get(key)
    if type(bits) is not int or bits < 1:
        raise ValueError(f"layer {row['name']!r} has {key} {bits!r}, expected a whole number of bits")
    return bits


def _like(values: Array, bounds: Bounds) -> Bounds:
    """The bounds with the leading axes of `values`, so that no rank is promoted silently."""
    return Bounds(*(jnp.broadcast_to(bound, values.shape) for bound in bounds))
