"""The cost table of a network on a machine."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from haqjax.hardware import measured
from haqjax.hardware.machines import Machine, estimate_usage
from haqjax.hardware.overflow import check_layers
from haqjax.hardware.proxy_costs import PARAMETER_BYTES, bop_table, size_table
from haqjax.hardware.spec import LARGEST, SMALLEST
from haqjax.hardware.usage import Limits
from haqjax.policies.cost import check_shape, policy_cost
from haqjax.reading import quote
from haqjax.text import escape
from haqjax.types import Cost, CostTable, LayerTable, Lifetimes
from haqjax.units import RESOURCES
from haqjax.widths import check_widths

CHUNK = 1024  # policies at a time: what is gathered for them stays in the cache, twice as fast on a CPU


def cost_table(
    machine: Machine, layers: LayerTable, storage: str = "plain", lifetimes: Lifetimes | None = None
) -> CostTable:
    """Computes the cost of every layer at every pair of bit-widths.

    Args:
      machine: from `haqjax.machine`.
      layers: the network, L layers.
      storage: counted in the size beside the weights, see `size_table`.
      lifetimes: of the network's activations, from `find_lifetimes`; without them peak memory is not known (NaN).

    Returns:
      Latency in s and energy in J for one batch of the machine, size in bytes, bit operations ("products", see
      `bop_table`) for one image; each float64 [L, 8, 8]. The same machine and layers give the same table. Products that
      carry no weight, such as attention's, are in `fixed` at 8 x 8 bits; a measured table has no price for them.

    Raises:
      ValueError: the machine's model cannot run these layers, a measured table is of others, or a cost is not a finite
        number above 0.

    >>> from haqjax.tracing.layer_table import layers
    >>> from haqjax.hardware import machine
    >>> network = layers(lambda params, x: x @ params["w"], {"w": np.ones((256, 8))}, np.ones((1, 8, 256)))
    >>> float(cost_table(machine("edge"), network).latency[0, 0, 0]) * 1e9
    160.0
    """
    check_layers(layers)
    usage = estimate_usage(machine, layers)
    latency, joules, operations = _price_products(machine, layers.products)
    fixed = Cost(*np.array([latency, joules, PARAMETER_BYTES * layers.other_parameters, operations, 0.0]))
    energy, size, bops = np.sum(usage.energy, axis=0), size_table(layers, storage), bop_table(layers)
    if not energy.any():  # a machine without energies
        energy = np.full_like(energy, np.nan)
    if machine.model != "measured":  # which is checked as it is read; what it has no entry for costs infinity there
        _check_costs(machine, layers, {"latency": usage.latency, "energy": energy})
    _check_costs(machine, layers, {"size": size, "bops": bops})
    return CostTable(usage.latency, energy, size, fixed, bops, lifetimes, layers.names)


def _price_products(machine: Machine, products: LayerTable | None) -> tuple[float, float, float]:
    """Prices products that carry no weight at 8 x 8 bits: s, J and bit operations."""
    if products is None:
        return 0.0, 0.0, 0.0
    operations = float(bop_table(products)[:, -1, -1].sum())
    if machine.model == "measured":
        return 0.0, 0.0, operations
    check_layers(products)
    usage = estimate_usage(machine, products)
    return float(usage.latency[:, -1, -1].sum()), float(np.sum(usage.energy, axis=0)[:, -1, -1].sum()), operations


def _check_costs(machine: Machine, layers: LayerTable, costs: Mapping[str, Float[np.ndarray, "L 8 8"]]) -> None:
    """Checks that costs are numbers above 0, in the range of the 32 bits in which policies are compared."""
    for resource, values in costs.items():
        least = np.full((len(layers), 1, 1), SMALLEST)
        if resource == "bops" and layers.lookup is not None:
            least[layers.lookup] = 0.0
        bad = ~((values >= least) & (values <= LARGEST))
        if resource == "energy" and np.isnan(values).all():
            continue
        if bad.any():
            layer, w, a = np.argwhere(bad)[0]
            raise ValueError(
                f"{escape(machine.name, 60)}: {RESOURCES[resource].field} of layer {quote(layers.names[layer])} at "
                f"{w + 1}/{a + 1} bits (weights/activations) is {values[layer, w, a]:g}, expected a number from "
                f"{SMALLEST:g} to {LARGEST:g}: look at the machine's constants and the layer's sizes"
            )


def available_widths(machine: Machine, layers: LayerTable) -> Bool[np.ndarray, "L 2 8"] | None:
    """Finds the widths [layer, weights or activations, bits - 1] that a measured table has entries for.

    Returns:
      None for a machine that computes at every width.

    Raises:
      ValueError: the table is of another network.
    """
    return measured.find_available(machine.spec, layers) if machine.model == "measured" else None


def find_limits(machine: Machine, layers: LayerTable) -> Limits:
    """Finds the slowest resource for every layer at every pair of bit-widths, with the utilisation of the machine.

    Args:
      machine: one of a model; a measured table does not know.
      layers: the network, L layers.

    Returns:
      Intensity in operations per byte, utilisation, and the limit as an index into `usage.LIMITS`; each [L, 8, 8].

    Raises:
      ValueError: the machine is a measured table.
    """
    if machine.model == "measured":
        raise ValueError(f"{machine.name} is a measured table, which does not say what takes the time")
    usage = estimate_usage(machine, layers)
    operations = 2.0 * machine.spec.batch * layers.macs[:, None, None]
    limit = np.argmax(np.stack([usage.compute, *usage.transfers]), axis=0)
    return Limits(operations / (np.sum(usage.moved, axis=0) / 8), usage.ideal / usage.latency, limit)


def total_cost(table: CostTable, policy: Int[Array, "*n L 2"] | Float[Array, "*n L 2"]) -> Cost:
    """Computes the cost of a network under each policy: `haqjax.policies.cost.policy_cost`, compiled.

    Args:
      table: from `cost_table`.
      policy: bits of weights and activations, 1 to 8. Integers are looked up. Floating bits are interpolated between
        the four neighbouring entries: equal to the table at whole bits and differentiable. 32 leaves a tensor as it
        is, and costs NaN where a table would have to say what 32 bits cost.

    Returns:
      Seconds, joules and bytes, leading axes as the policy's; under `jit` NaN for a policy with any other bits.

    Raises:
      ValueError: the policy has another number of layers than the table; bits that are none, outside of `jit`.

    >>> bits = np.arange(1.0, 9.0)[None, :, None] + np.zeros((3, 8, 8))
    >>> table = CostTable(latency=bits, energy=bits, size=bits, fixed=Cost(0.0, 0.0, 5.0))
    >>> float(total_cost(table, np.full((3, 2), 4)).size)
    17.0
    """
    policy = policy if isinstance(policy, jax.Array) else np.asarray(policy)
    check_shape(table, policy)
    check_widths(policy, names=table.names, fractional=True)
    return _total_cost(table, policy)


@jax.jit
def _total_cost(table: CostTable, policy: Array) -> Cost:
    lead, row = policy.shape[:-2], policy.shape[-2:]
    if math.prod(lead) <= CHUNK:
        return policy_cost(table, policy)
    found = jax.lax.map(lambda one: policy_cost(table, one), policy.reshape(-1, *row), batch_size=CHUNK)
    return jax.tree.map(lambda costs: costs.reshape(lead), found)
