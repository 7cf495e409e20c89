"""Which policies were evaluated before, as far as a compiled search remembers."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

CAPACITY = 4096  # policies; of more, the latest
FACTORS = (0x9E3779B1, 0x85EBCA77)  # odd and large: the golden ratio and a prime, as xxHash has them


class Seen(NamedTuple):
    """Fingerprints of policies, the oldest overwritten first."""

    prints: UInt32[Array, "A 2"]
    total: Int[Array, ""]  # noted so far


def nothing() -> Seen:
    """No policy yet."""
    return Seen(jnp.zeros((CAPACITY, 2), jnp.uint32), jnp.int32(0))


def note(seen: Seen, policies: Int[Array, "N L 2"]) -> Seen:
    """Remembers policies."""
    at = (seen.total + jnp.arange(len(policies))) % CAPACITY
    return Seen(seen.prints.at[at].set(fingerprint(policies)), seen.total + len(policies))


def is_new(seen: Seen, policies: Int[Array, "N L 2"]) -> Bool[Array, "N"]:
    """Whether each policy was neither noted before nor stands earlier among these.

    >>> policies = jnp.array([[[2, 3]], [[3, 2]], [[2, 3]]])
    >>> is_new(note(nothing(), policies[1:2]), policies).tolist()
    [True, False, False]
    """
    prints = fingerprint(policies)
    known = (prints[:, None] == seen.prints[None]).all(axis=-1) & (jnp.arange(CAPACITY) < seen.total)[None]
    earlier = jnp.tril((prints[:, None] == prints[None]).all(axis=-1), -1)
    return ~known.any(axis=-1) & ~earlier.any(axis=-1)


def first_new(seen: Seen, candidates: Int[Array, "K L 2"], count: int) -> Int[Array, "N L 2"]:
    """The first `count` candidates that are new; where there are too few, others after them."""
    return candidates[jnp.argsort(~is_new(seen, candidates), stable=True)[:count]]


def fingerprint(policies: Int[Array, "N L 2"]) -> UInt32[Array, "N 2"]:
    """Two polynomials of the bits, modulo 2^32: 64 bits that differ for different policies, but for bad luck."""
    flat = policies.reshape(len(policies), -1).astype(jnp.uint32)
    powers = [jnp.cumprod(jnp.full(flat.shape[1], factor, jnp.uint32)) for factor in FACTORS]
    return jnp.stack([(flat * power[None]).sum(axis=-1, dtype=jnp.uint32) for power in powers], axis=-1)
