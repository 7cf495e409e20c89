"""Policies: how many bits every layer's weights and activations get."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from haqjax.files import write_json
from haqjax.policies.bounds import at_rank, clip_policy, follow, ladder, lead, to_rank
from haqjax.reading import quote, read_json
from haqjax.types import ACTIVATION, WEIGHT, Bounds
from haqjax.widths import FULL_PRECISION, WIDTHS, check_widths


def to_bits(actions: Float[Array, "*n L 2"], bounds: Bounds) -> Int[Array, "*n L 2"]:
    """Turns actions into bits: `round(low - 0.5 + action (high - low + 1))`, clipped into the bounds.

    The rule is HAQ's (Wang et al. 2019, section 3.2): every width owns an equal part of [0, 1]. Where only some
    widths are allowed, each of those does. Tied layers follow the first of their group.

    >>> from haqjax.policies.bounds import make_bounds
    >>> to_bits(jnp.asarray([[0.0, 1.0], [0.5, 0.9]]), make_bounds(2, pinned={})).tolist()
    [[2, 8], [5, 8]]
    """
    if bounds.allowed is not None:
        _, count = ladder(bounds)
        rank = jnp.round(actions * lead(count, actions) - 0.5).astype(jnp.int32)
        return follow(at_rank(jnp.clip(rank, 0, lead(count, actions) - 1), bounds), bounds)
    low, high = lead(bounds.low, actions), lead(bounds.high, actions)
    bits = jnp.round(low - 0.5 + actions * (high - low + 1))
    return follow(jnp.clip(bits.astype(jnp.int32), low, high), bounds)


def to_actions(policy: Int[Array, "*n L 2"], bounds: Bounds) -> Float[Array, "*n L 2"]:
    """Finds the action in the middle of those that `to_bits` turns into these bits.

    >>> from haqjax.policies.bounds import make_bounds
    >>> to_actions(jnp.asarray([[2, 8]]), make_bounds(1, low=1, pinned={})).tolist()
    [[0.1875, 0.9375]]
    """
    _, count = ladder(bounds)
    return (to_rank(policy, bounds) + 0.5) / lead(count, policy)


def uniform(bits: int | Int[Array, ""], bounds: Bounds) -> Int[Array, "L 2"]:
    """Makes a policy of the same bits everywhere, as far as the bounds allow: pinned layers keep theirs.

    >>> from haqjax.policies.bounds import make_bounds
    >>> uniform(4, make_bounds(3)).tolist()
    [[8, 8], [4, 4], [8, 8]]
    """
    return clip_policy(jnp.full(bounds.low.shape, bits, jnp.int32), bounds)


def to_rows(policy: Int[Array, "L 2"], names: Sequence[str]) -> list[dict[str, Any]]:
    """Lists one row a layer, ready for JSON.

    Raises:
      ValueError: the policy is of another number of layers, or holds something else than widths.

    >>> to_rows(np.array([[8, 4]]), ["stem"])
    [{'name': 'stem', 'weight_bits': 8, 'activation_bits': 4}]
    """
    if np.shape(policy) != (len(names), 2):
        raise ValueError(f"policy has shape {np.shape(policy)}, the network has {len(names)} layers")
    check_widths(policy, names=names)
    pairs = np.asarray(policy).tolist()
    return [
        {"name": name, "weight_bits": pair[WEIGHT], "activation_bits": pair[ACTIVATION]}
        for name, pair in zip(names, pairs, strict=True)
    ]


def from_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Int[Array, "L 2"]:
    """Reads the policy that `to_rows` wrote, for the network with these layers.

    Raises:
      ValueError: the rows belong to another network, lack an entry, or hold something else than widths: 1 to 8, or 32
        where a tensor is left as it is.

    >>> from_rows([{"name": "stem", "weight_bits": 8, "activation_bits": 4}], ["stem"]).tolist()
    [[8, 4]]
    """
    if len(rows) != len(names):
        raise ValueError(f"the policy has {len(rows)} layers, the network {len(names)}")
    policy = np.empty((len(names), 2), np.int32)
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        if row.get("name") != name:
            raise ValueError(f"layer {index} of the policy is {quote(row.get('name'))}, of the network {name!r}")
        policy[index, WEIGHT] = _read_bits(row, "weight_bits")
        policy[index, ACTIVATION] = _read_bits(row, "activation_bits")
    return jnp.asarray(policy)


def save(path: str | Path, policy: Int[Array, "L 2"], names: Sequence[str], **about: Any) -> None:
    """Writes a policy as JSON: `about` (network, hardware, costs: anything JSON knows), then `layers`."""
    write_json(path, {**about, "layers": to_rows(policy, names)})


def load(path: str | Path, names: Sequence[str]) -> Int[Array, "L 2"]:
    """Reads a policy that `save` wrote, for the network with these layers.

    Raises:
      ValueError: the file is not such a policy, or belongs to another network.
    """
    document = read_json(path)
    rows = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"cannot read the policy in {path}: it has no list `layers` of mappings")
    try:
        return from_rows(rows, names)
    except ValueError as error:
        raise ValueError(f"cannot read the policy in {path}: {error}") from None


def _read_bits(row: Mapping[str, Any], key: str) -> int:
    bits = row.get(key)
    if type(bits) is not int or not (1 <= bits <= WIDTHS or bits == FULL_PRECISION):
        raise ValueError(
            f"layer {row['name']!r} has {key} {quote(bits)}: expected 1 to {WIDTHS}, or {FULL_PRECISION} to leave it"
        )
    return bits
