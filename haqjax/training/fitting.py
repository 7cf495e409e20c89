"""Training of a float network from scratch by SGD."""

from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from haqjax.data import Source, Split, check_labels
from haqjax.models import Network
from haqjax.models.network import Params
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import with_hook
from haqjax.training.distillation import cross_entropy
from haqjax.training.steps import Objective, Passes, Progress, run_steps

MOMENTUM = 0.9
WARMUP = 0.15  # fraction of the steps over which the learning rate rises from zero
SMOOTHING = 0.1  # label smoothing (Szegedy et al. 2016, section 7)


class Recipe(TypedDict):
    """Keyword arguments of `fit` that suit a network."""

    epochs: int
    batch_size: int
    learning_rate: float


# Found by a few tries on the digits at 32 pixels.
RECIPES: dict[str, Recipe] = {
    "mobilenet_v1": Recipe(epochs=16, batch_size=32, learning_rate=0.05),
    "mobilenet_v2": Recipe(epochs=16, batch_size=32, learning_rate=0.03),
    "resnet50": Recipe(epochs=8, batch_size=32, learning_rate=0.03),
    "resnet20": Recipe(epochs=4, batch_size=32, learning_rate=0.1),
    "resnet56": Recipe(epochs=4, batch_size=32, learning_rate=0.05),
}


def fit(
    network: Network,
    split: Split | Source,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    key: PRNGKeyArray,
    weight_decay: float = 5e-4,
    shift: int = 2,
    flip: bool = False,
    hook: Callable | None = use_cpu_kernels,
    mesh: Mesh | None = None,
    on_epoch: Callable[[Progress], None] | None = None,
) -> Params:
    """Trains a network: SGD with Nesterov momentum, linear warm-up then cosine, decay of kernels only.

    The result may be poor: measure it with `haqjax.evaluation.measure_accuracy`.

    Args:
      network: starts from its `params`, which stay as they are.
      split: at least `batch_size` images; an epoch leaves out the last few that make no whole batch.
      epochs: passes over the split.
      batch_size: images a step.
      learning_rate: its largest value.
      key: order of the images and their augmentation; same key, same parameters.
      weight_decay: of kernels, at a learning rate of one.
      shift: images are moved by up to so many pixels.
      flip: whether images are mirrored at random; not for digits or text.
      hook: how a layer is computed, see `haqjax.tracing.hooks.with_hook`; the default picks the fastest equal form,
        None leaves layers as they are.
      mesh: devices to shard each batch over, see `haqjax.sharding.make_mesh`; None is one device.
      on_epoch: called after each epoch.

    Returns:
      Parameters with running statistics of batch normalisation.

    Raises:
      ValueError: a number of epochs or images that is not positive; a batch larger than the split, or not a multiple
        of the devices; a label beyond the network's classes.

    >>> import numpy as np
    >>> dense = lambda params, x: x.reshape(len(x), -1) @ params["kernel"]
    >>> start = {"kernel": jnp.zeros((4, 2))}
    >>> network = Network("dense", 2, 2, 1.0, dense, lambda params, x: (dense(params, x), params), start)
    >>> bright = Split(np.array([-1, 1, -1, 1], np.float32)[:, None, None, None] * np.ones((2, 2, 1)), np.arange(4) % 2)
    >>> params = fit(network, bright, epochs=5, batch_size=4, learning_rate=0.1, shift=0, key=jax.random.key(0))
    >>> dense(params, bright.images).argmax(-1).tolist()
    [0, 1, 0, 1]
    """
    check_labels(split, network.classes)
    apply = network.apply_train if hook is None else with_hook(network.apply_train, hook)
    passes = Passes(epochs, batch_size, shift, flip)
    sgd = make_sgd(learning_rate, passes.count_steps(len(split)))
    optimiser = optax.chain(optax.add_decayed_weights(weight_decay, mask=mask_kernels), sgd)
    options = dict(key=key, mesh=mesh, on_epoch=on_epoch)
    return run_steps(_make_objective(apply), optimiser, network.params, split, passes, **options)  # type: ignore[arg-type]


def _make_objective(apply_train: Callable) -> Objective:
    def objective(params: Params, images: Array, labels: Array, context: Any) -> tuple[Array, tuple[Params, Array]]:
        logits, moved = apply_train(params, images)
        loss = cross_entropy(logits, labels, SMOOTHING)
        return loss, (moved, jnp.stack([loss, jnp.mean(logits.argmax(-1) == labels)]))

    return objective


def make_sgd(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Makes SGD with Nesterov momentum; the rate rises from 0 for a while, then falls to 0 as a cosine."""
    rise = max(1, int(WARMUP * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, rise, max(steps, rise + 1))
    return optax.sgd(schedule, momentum=MOMENTUM, nesterov=True)


def mask_kernels(params: Params) -> Params:
    """Marks the weights of layers: those have two axes or more, biases, scales and statistics one."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
