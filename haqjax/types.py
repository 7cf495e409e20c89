"""The records that the parts of haqjax pass to each other.

Sizes in shapes: L layers, N policies, E episodes, B images. Bit-widths run from 1 to `WIDTHS`; a table entry for
`w` weight bits and `a` activation bits stands at `[layer, w - 1, a - 1]`. Units are SI: seconds, joules, bytes.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int8, PyTree, UInt8

from haqjax.widths import CODEBOOK, FULL_PRECISION, LINEAR, PRICED, WIDTHS, are_widths, check_widths

__all__ = [  # with the constants of `haqjax.widths`
    "ACTIVATION",
    "FULL_PRECISION",
    "WEIGHT",
    "WIDTHS",
    "AnyArray",
    "Bounds",
    "Budget",
    "Codebook",
    "Cost",
    "CostTable",
    "Evaluation",
    "Evaluator",
    "LayerTable",
    "Lifetimes",
    "Projection",
    "Ranges",
    "Rounding",
    "Transition",
]

AnyArray = Array | np.ndarray  # on the device or on the host

WEIGHT, ACTIVATION = 0, 1  # columns of a policy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerTable:
    """The layers of a network that carry a weight: one row a layer, in the order of execution, for one image.

    A `dense` layer is a matrix product: kernel 1x1, stride 1, and `out_size` is (rows per image, 1).
    Multiply-accumulates and element counts are derived, in 64-bit NumPy integers on the host.
    """

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    kernel: Int[np.ndarray, "L 2"]  # height, width
    stride: Int[np.ndarray, "L 2"]
    in_channels: Int[np.ndarray, "L"]  # all groups together
    out_channels: Int[np.ndarray, "L"]  # all groups together
    groups: Int[np.ndarray, "L"]
    in_size: Int[np.ndarray, "L 2"]  # input map, before padding
    out_size: Int[np.ndarray, "L 2"]
    dense: Bool[np.ndarray, "L"]  # a matrix product, not a convolution
    other_parameters: Int[
        np.ndarray, ""
    ]  # learned numbers outside the layers' weights: biases, batch norm scale and shift
    # Factor by which the input map is spread, with zeros between, before a transposed convolution; None: 1 everywhere.
    upsampling: Int[np.ndarray, "L 2"] | None = None
    # Products that carry no weight, such as attention's, as dense layers of one example: no policy has bits for them.
    products: "LayerTable | None" = None
    outer: Bool[np.ndarray, "L"] | None = None  # layers that read the input or write an output; None: first and last
    # Tables of which entries are picked, such as embeddings: of `in_channels` entries with `out_channels` numbers each,
    # `out_size` are read for an example. Nothing is multiplied. None: there is none.
    lookup: Bool[np.ndarray, "L"] | None = None
    # How often a layer runs for one example, such as in a loop; None: once.
    repeats: Int[np.ndarray, "L"] | None = None
    # Uses of the layers' weights on inputs of other sizes, stored once with the layer; None: there is none.
    further: "LayerTable | None" = None
    further_of: Int[np.ndarray, "M"] | None = None  # the layer of each further use

    def __len__(self) -> int:
        return len(self.names)

    @property
    def depthwise(self) -> Bool[np.ndarray, "L"]:
        return (self.groups > 1) & (self.groups == self.in_channels)

    @property
    def pointwise(self) -> Bool[np.ndarray, "L"]:
        return ~np.asarray(self.dense) & (np.prod(self.kernel, axis=-1) == 1) & (np.asarray(self.groups) == 1)

    @property
    def weights(self) -> Int[np.ndarray, "L"]:
        """Weight elements of each layer."""
        shape = (np.prod(self.kernel, axis=-1), self.in_channels, self.out_channels)
        kernel, c_in, c_out = (np.asarray(n, np.int64) for n in shape)
        return kernel * (c_in // self.groups) * c_out

    @property
    def macs(self) -> Int[np.ndarray, "L"]:
        """Multiply-accumulates of each layer for one image, all its uses together."""
        often = 1 if self.repeats is None else np.asarray(self.repeats, np.int64)
        found = self.weights * np.prod(self.places, axis=-1) * often
        if self.lookup is not None:
            found = np.where(self.lookup, 0, found)
        if self.further is not None and self.further_of is not None:
            np.add.at(found, self.further_of, self.further.macs)
        return found

    @property
    def places(self) -> Int[np.ndarray, "L 2"]:
        """Places of the output map at which each weight is multiplied.

        In a transposed convolution zeros that the map is spread with are not counted; zeros at the edge of a map are.
        """
        places = np.asarray(self.out_size, np.int64)
        if self.upsampling is None:
            return places
        upsampled = np.asarray(self.upsampling) > 1
        return np.where(upsampled, np.minimum(-(-places // self.upsampling), self.in_size), places)


class Cost(NamedTuple):
    """What one policy costs; leading axes as the policy's. NaN where it is not known."""

    latency: Float[Array, "*n"]  # s per batch of the machine
    energy: Float[Array, "*n"]  # J per batch of the machine; NaN where the machine has no energy model
    size: Float[Array, "*n"]  # bytes of the stored parameters
    # Bit operations for one image, weight bits x activation bits a product; bytes of its activations at their peak.
    bops: Float[Array, "*n"] | None = None
    memory: Float[Array, "*n"] | None = None


class Lifetimes(NamedTuple):
    """The V tensors computed from the input, and which of them are in memory during each of the E products.

    A product is a layer, or one of two activations.
    """

    elements: Float[np.ndarray, "V"]  # for the batch that was traced
    alive: Bool[np.ndarray, "E V"]  # what the product reads and writes, and what is read later
    readers: Bool[np.ndarray, "V L"]  # the layers whose activation bits a tensor is stored at, the widest of them


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CostTable:
    """What every layer costs at every pair of bit-widths: the seam between hardware and search.

    The tables are float64 NumPy arrays on the host and become float32 inside `jit`.
    """

    latency: Float[np.ndarray, "L 8 8"]  # s
    energy: Float[np.ndarray, "L 8 8"]  # J
    size: Float[np.ndarray, "L 8 8"]  # bytes
    fixed: Cost  # what no policy changes, scalars: bytes of the parameters that stay at 32 bits
    bops: Float[np.ndarray, "L 8 8"] | None = None  # bit operations
    lifetimes: Lifetimes | None = None  # of the activations, for peak memory, which is no sum over layers
    names: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})  # of the layers, for errors

    def __len__(self) -> int:
        return self.latency.shape[0]


class Bounds(NamedTuple):
    """The bits that each entry of a policy may have; a pinned entry has `low == high`."""

    low: Int[Array, "L 2"]  # the fewest
    high: Int[Array, "L 2"]  # the most
    allowed: Bool[Array, "L 2 8"] | None = None  # which widths between them, by bits - 1; None: all
    tied: Int[Array, "L"] | None = None  # the layer whose bits a layer has, the first of its group; None: its own


class Budget(NamedTuple):
    """The most that a policy may cost, scalars; a resource without a limit has `inf` or None."""

    latency: Float[Array, ""]  # s
    energy: Float[Array, ""]  # J
    size: Float[Array, ""]  # bytes
    bops: Float[Array, ""] | None = None  # bit operations
    memory: Float[Array, ""] | None = None  # bytes


class Evaluation(NamedTuple):
    """Accuracy and loss of N policies on the images of one split."""

    accuracy: Float[Array, "N"]  # 0..1; NaN where a policy cannot be evaluated
    loss: Float[Array, "N"]  # mean cross entropy, nats, which ranks policies of equal accuracy; NaN where not measured


class Projection(NamedTuple):
    """A policy lowered onto a budget."""

    policy: Int[Array, "*n L 2"]
    feasible: Bool[Array, "*n"]  # whether it fits; where not, the policy is the lowest one
    cost: Cost


class Codebook(NamedTuple):
    """The weights of a network as k-means has them at every width: `codebooks[l, w - 1][assignments[l][w - 1]]`.

    A codebook of `w` bits has `2**w` values in rising order; the rest of its row repeats the last of them.
    """

    assignments: tuple[UInt8[AnyArray, "8 *shape"], ...]  # one array a layer, [bits - 1, *shape of the weight]
    codebooks: Float[AnyArray, "L 8 256"]


class Rounding(NamedTuple):
    """How linear weights are rounded for the sake of each layer's output.

    At `w` bits an output channel's clip is multiplied by `factor[w - 1]` and a weight's nearest level is moved by
    `offsets[l][w - 1]` levels. Both hold for the weights that they were chosen for, `origin`: an output channel in
    which a weight has moved is rounded to the nearest levels. What rounding adds to the output on average, known from
    the `means` of the layer's inputs, is taken off.
    """

    offsets: tuple[Int8[AnyArray, "8 *shape"], ...] | None  # one array a layer, [bits - 1, *shape of the weight]
    factor: Float[AnyArray, "8 C"] | None  # output channels of all layers in one row
    means: (
        tuple[Float[AnyArray, "*shape"] | None, ...] | None
    )  # one array a use of a layer, which broadcasts to its weight
    origin: tuple[Float[AnyArray, "*shape"], ...] | None  # one array a layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ranges:
    """Where each tensor is clipped at each bit-width, and at which of them an activation is signed.

    With `per_channel`, an output channel of a weight is clipped at `clip` times the ratio of the channel's largest
    magnitude to the tensor's; without, at `clip`. With a `codebook`, weights take their values from it instead.
    """

    clip: Float[AnyArray, "L 2 8"]  # [layer, WEIGHT or ACTIVATION, bits - 1]
    signed: Bool[AnyArray, "L 8"]  # [layer, bits - 1], activations only; weights are always signed
    per_channel: bool = dataclasses.field(default=True, metadata={"static": True})
    codebook: Codebook | None = None  # k-means weights
    rounding: Rounding | None = None  # of linear weights; None is to the nearest level
    reached: Bool[AnyArray, "L"] | None = None  # layers whose activation calibration saw; others' are left as they are

    @property
    def least_widths(self) -> tuple[int, int]:
        """Fewest bits of weights and activations."""
        return LINEAR if self.codebook is None else CODEBOOK


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Measures a network under policies: a function and all arrays that it reads, as one argument of compiled programs.

    `evaluator(policies)` is traceable and gives the `Evaluation` of N policies. Another evaluator whose function is the
    same object and whose arrays have the same shapes does not compile again.
    """

    function: Callable[..., Evaluation] = dataclasses.field(metadata={"static": True})  # (evaluator, policies, least)
    params: PyTree
    images: PyTree  # in micro-batches [m, b, ...]; None where the function reads none
    labels: Int[Array, "m b"] | None  # below 0 where an image only completes the last micro-batch
    ranges: Ranges | None
    extra: PyTree = None  # what else the function reads: training images, activations kept at cuts, another evaluator
    soft_loss: jax.tree_util.Partial | None = None  # fractional bits [L, 2], step -> nats; differentiable
    races: bool = dataclasses.field(default=False, metadata={"static": True})  # gives up policies below `least`
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})  # that the function spreads over

    def __call__(self, policies: Int[Array, "N L 2"], least: Float[Array, ""] | float = 0.0) -> Evaluation:
        """Evaluates policies.

        Args:
          policies: bits of weights and activations.
          least: accuracy below which a policy may be given up; read by an evaluator that `races`.

        Returns:
          Accuracy and loss; under `jit` NaN for a policy with bits that are none, see `haqjax.widths`.

        Raises:
          ValueError: bits that are none, outside of `jit`.
        """
        fewest = PRICED if self.ranges is None else self.ranges.least_widths
        check_widths(policies, fewest)
        found = self.function(self, policies, least)
        if not isinstance(policies, jax.core.Tracer):
            return found
        valid = are_widths(policies, fewest)
        if all(jnp.shape(values) == valid.shape for values in found):  # else a caller's check tells
            found = jax.tree.map(lambda values: jnp.where(valid, values, jnp.nan), found)
        if self.mesh is None:
            return found
        # On every device whole: what is spread over hosts can be read by none of them.
        return jax.lax.with_sharding_constraint(found, NamedSharding(self.mesh, PartitionSpec()))


class Transition(NamedTuple):
    """One decision of an agent: width `action` chosen on seeing `observation`."""

    observation: Float[Array, "*n 10"]
    action: Float[Array, "*n"]  # in [0, 1]
    reward: Float[Array, "*n"]
    next_observation: Float[Array, "*n 10"]
    discount: Float[Array, "*n"]  # 0 at the last decision of an episode
