"""Networks by name, as pure functions of their parameters."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from haqjax.models.batchnorm import EPSILON, SAME, SYMMETRIC, Convention
from haqjax.models.mobilenet_v1 import MobileNetV1
from haqjax.models.mobilenet_v2 import MobileNetV2
from haqjax.models.resnet import CifarResNet, ResNet50
from haqjax.tracing.names import is_statistic

Params = dict[str, Any]
Apply = Callable[[Params, Float[Array, "B H W 3"]], Float[Array, "B classes"]]
ApplyTrain = Callable[[Params, Float[Array, "B H W 3"]], tuple[Float[Array, "B classes"], Params]]

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
    "resnet50": ResNet50,
    "resnet20": functools.partial(CifarResNet, blocks_per_stage=3),
    "resnet56": functools.partial(CifarResNet, blocks_per_stage=9),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network as two pure functions of its parameters.

    `params` is a nested dictionary of arrays: layer weights and dense weights under `kernel`, running statistics of
    batch normalisation under `mean` and `var`.
    """

    name: str
    classes: int
    image_size: int  # height and width of the images it is meant for; the functions take any
    width: float  # multiplier of the channels
    apply: Apply  # normalises by the running statistics
    apply_train: ApplyTrain  # normalises by those of the batch, and returns the parameters with the running ones moved
    params: Params
    padding: str = SYMMETRIC  # "symmetric", as in PyTorch, or "same", as in TensorFlow
    epsilon: float = EPSILON  # added to the variance by batch normalisation

    @property
    def reading(self) -> dict[str, Any]:
        """Returns what `haqjax.layers` is told besides the example."""
        return {}

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Returns shape and type of one image as a batch."""
        return jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), np.float32)


def build(
    name: str,
    *,
    classes: int = 1000,
    image_size: int = 224,
    width: float = 1.0,
    padding: str | None = None,
    epsilon: float = EPSILON,
    key: PRNGKeyArray,
) -> Network:
    """Makes a network with freshly drawn parameters.

    Args:
      name: one of `MODELS`.
      classes: number of logits.
      image_size: height and width of the images, in pixels.
      width: multiplier of the channels of every layer.
      padding: "symmetric", as in PyTorch, or "same", as in TensorFlow; None is "same" for mobilenet_v1, as its authors
        released it, and "symmetric" for the others.
      epsilon: added to the variance by batch normalisation.
      key: of the kernels: normal, of variance 2 / fan-in, in the classifier 1 / fan-in.

    Returns:
      The network. `apply_train` normalises by the batch's statistics and returns the parameters with the running ones
      moved; all other leaves come back as they are.

    Raises:
      ValueError: `name` is not in `MODELS`, there is no such padding, or a number is not positive.

    >>> network = build("resnet20", classes=10, image_size=8, width=0.25, key=jax.random.key(0))
    >>> jax.eval_shape(network.apply, network.params, network.example).shape
    (1, 10)
    """
    convention = _check(name, classes, image_size, width, padding, epsilon)
    graph, state = nnx.split(MODELS[name](classes, width, convention))
    params = _draw_kernels(nnx.to_pure_dict(state), key)
    return _network(name, classes, image_size, width, convention, graph, params)


def outline(
    name: str,
    *,
    classes: int = 1000,
    image_size: int = 224,
    width: float = 1.0,
    padding: str | None = None,
    epsilon: float = EPSILON,
) -> Network:
    """Makes a network whose parameters are shapes only: enough to read its layers, in milliseconds.

    Args, errors: as `build`.

    Returns:
      The network, with a `jax.ShapeDtypeStruct` for each parameter.

    >>> count_learned(outline("resnet20", classes=10, image_size=32).params)
    269722
    """
    convention = _check(name, classes, image_size, width, padding, epsilon)
    graph, state = nnx.split(nnx.eval_shape(lambda: MODELS[name](classes, width, convention)))
    return _network(name, classes, image_size, width, convention, graph, nnx.to_pure_dict(state))


def count_learned(params: Params) -> int:
    """Counts the learned numbers of a network: all but the running statistics of batch normalisation.

    Args:
      params: nested dictionary of arrays or shapes.

    Returns:
      The count, which papers call the number of parameters.

    >>> count_learned({"kernel": np.zeros((2, 3)), "norm": {"scale": np.zeros(3), "mean": np.zeros(3)}})
    9
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if not is_statistic(path))


@functools.cache  # the same functions for the same network, so that one compilation serves all
def _make_functions(graph: nnx.GraphDef) -> tuple[Apply, ApplyTrain]:
    def apply(params: Params, x: Float[Array, "B H W 3"]) -> Float[Array, "B classes"]:
        return nnx.merge(graph, params)(x)

    def apply_train(params: Params, x: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B classes"], Params]:
        model = nnx.merge(graph, params)
        logits = model(x, train=True)
        return logits, nnx.to_pure_dict(nnx.state(model))

    return apply, apply_train


def _draw_kernels(params: Params, key: PRNGKeyArray) -> Params:
    """Draws all kernels at once: a draw for each would take ten seconds to compile."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    sizes = [leaf.size if path[-1].key == "kernel" else 0 for path, leaf in leaves]
    normal = np.asarray(jax.random.normal(key, (sum(sizes),), jnp.float32))
    parts = np.split(normal, np.cumsum(sizes)[:-1])
    drawn = [
        jnp.asarray(part.reshape(leaf.shape) * _deviation(leaf.shape)) if part.size else leaf
        for part, (_, leaf) in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def _deviation(shape: tuple[int, ...]) -> np.float32:
    """Computes the deviation from fan-in: He et al. 2015 before a rectifier, LeCun et al. 1998 for the classifier."""
    return np.float32(math.sqrt((2 if len(shape) == 4 else 1) / math.prod(shape[:-1])))


def _network(
    name: str, classes: int, image_size: int, width: float, convention: Convention, graph: nnx.GraphDef, params: Params
) -> Network:
    functions = _make_functions(graph)
    return Network(name, classes, image_size, width, *functions, params, convention.padding, convention.epsilon)


def _check(name: str, classes: int, image_size: int, width: float, padding: str | None, epsilon: float) -> Convention:
    if name not in MODELS:
        raise ValueError(f"unknown network {name!r}; there are {', '.join(sorted(MODELS))}")
    for option, value in (("classes", classes), ("image_size", image_size), ("width", width)):
        if not value > 0:
            raise ValueError(f"{option} must be positive, got {value!r}")
    return Convention(padding or (SAME if name == "mobilenet_v1" else SYMMETRIC), epsilon)
