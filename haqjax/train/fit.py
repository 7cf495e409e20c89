"""Training a float network from scratch on a split that fits the device."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from haqjax.capture import with_hook
from haqjax.data import Split
from haqjax.lowering import lower
from haqjax.models import Network
from haqjax.models.network import Params
from haqjax.train.augment import augment

MOMENTUM = 0.9
WARMUP = 0.15  # share of the steps over which the learning rate rises from zero
SMOOTHING = 0.1  # share of the target spread over all classes (Szegedy et al. 2016, section 7)


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


class Progress(NamedTuple):
    """One epoch of training, measured on the augmented training images as it went along."""

    epoch: int  # 1 .. epochs
    epochs: int
    loss: float
    accuracy: float  # 0 .. 1


class _State(NamedTuple):
    params: Params
    optimiser: optax.OptState


def fit(
    network: Network,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    key: PRNGKeyArray,
    weight_decay: float = 5e-4,
    shift: int = 2,
    flip: bool = False,
    hook: Callable | None = lower,
    on_epoch: Callable[[Progress], None] | None = None,
) -> Params:
    """Trains a network: SGD with Nesterov momentum, linear warm-up then cosine, decay of kernels only.

    Nothing says that the result is any good: measure `accuracy`, and say so where it is not.

    Args:
      network: starts from its `params`, which stay as they are.
      split: at least `batch_size` images; an epoch leaves out the last few that fill no batch.
      epochs: passes over the split.
      batch_size: images a step.
      learning_rate: its largest value.
      key: order of the images and their augmentation; same key, same parameters.
      weight_decay: of kernels, at a learning rate of one.
      shift: images are moved by up to so many pixels.
      flip: whether images are mirrored at random; not for digits or text.
      hook: how a layer is computed, see `haqjax.capture.with_hook`; the default picks the fastest equal form, None
        leaves layers as they are.
      on_epoch: called after each epoch.

    Returns:
      Parameters with running statistics of batch normalisation.

    Raises:
      ValueError: a number of epochs or images that is not positive, or a batch larger than the split.

    >>> import numpy as np
    >>> dense = lambda params, x: x.reshape(len(x), -1) @ params["kernel"]
    >>> start = {"kernel": jnp.zeros((4, 2))}
    >>> network = Network("dense", 2, 2, 1.0, dense, lambda params, x: (dense(params, x), params), start)
    >>> bright = Split(np.array([-1, 1, -1, 1], np.float32)[:, None, None, None] * np.ones((2, 2, 1)), np.arange(4) % 2)
    >>> params = fit(network, bright, epochs=5, batch_size=4, learning_rate=0.1, shift=0, key=jax.random.key(0))
    >>> dense(params, bright.images).argmax(-1).tolist()
    [0, 1, 0, 1]
    """
    apply = network.apply_train if hook is None else with_hook(network.apply_train, hook)
    return train(
        apply, network.params, split, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        weight_decay=weight_decay, shift=shift, flip=flip, key=key, on_epoch=on_epoch,
    )  # fmt: skip


def train(
    apply_train: Callable[..., tuple[Array, Params]],
    params: Params,
    split: Split,
    *context: Any,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    shift: int,
    flip: bool,
    key: PRNGKeyArray,
    on_epoch: Callable[[Progress], None] | None = None,
) -> Params:
    """Trains the parameters of `apply_train(params, images, *context) -> (logits, moved params)`; see `fit`.

    Args:
      context: arrays that are read and not trained.
    """
    _check(split, epochs, batch_size)
    optimiser = _make_optimiser(learning_rate, epochs * (len(split) // batch_size), weight_decay)
    step = _make_step(apply_train, optimiser, functools.partial(augment, shift=shift, flip=flip))

    images, labels, context = jax.device_put((split.images, split.labels, context))
    params = jax.device_put(params, may_alias=False)  # the step overwrites its own
    state = _State(params, jax.jit(optimiser.init)(params))
    for epoch, epoch_key in enumerate(jax.random.split(key, epochs), start=1):
        measured = []
        for rows, step_key in _batches(len(split), batch_size, epoch_key):
            state, measures = step(state, images, labels, rows, step_key, context)
            measured.append(measures)
        if on_epoch is not None:
            on_epoch(Progress(epoch, epochs, *jnp.stack(measured).mean(0).tolist()))
    return state.params


def _make_step(apply: Callable, optimiser: optax.GradientTransformation, vary: Callable) -> Callable:
    """Makes the compiled step; a scan over the steps of an epoch would be 20 times slower on a CPU."""

    def objective(params: Params, images: Array, labels: Array, context: tuple) -> tuple[Array, tuple[Params, Array]]:
        logits, moved = apply(params, images, *context)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), SMOOTHING)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, (moved, jnp.stack([loss, jnp.mean(logits.argmax(-1) == labels)]))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: _State, images: Array, labels: Array, rows: Array, key: PRNGKeyArray, context: tuple
    ) -> tuple[_State, Array]:
        batch = vary(images[rows], key=key)
        gradient, (moved, measures) = jax.grad(objective, has_aux=True)(state.params, batch, labels[rows], context)
        updates, memory = optimiser.update(gradient, state.optimiser, state.params)
        # Running statistics get no gradient and no decay: their update is zero, and they stay as `apply` moved them.
        return _State(optax.apply_updates(moved, updates), memory), measures

    return step


def _make_optimiser(learning_rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    rise = max(1, int(WARMUP * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, rise, max(steps, rise + 1))
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_kernels),
        optax.sgd(schedule, momentum=MOMENTUM, nesterov=True),
    )


def _kernels(params: Params) -> Params:
    """Weights of layers have two axes or more; biases, scales and statistics have one."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _batches(count: int, batch_size: int, key: PRNGKeyArray) -> Iterator[tuple[Int[Array, "B"], PRNGKeyArray]]:
    order_key, vary_key = jax.random.split(key)
    steps = count // batch_size
    rows = jax.random.permutation(order_key, count)[: steps * batch_size].reshape(steps, batch_size)
    yield from zip(rows, jax.random.split(vary_key, steps), strict=True)


def _check(split: Split, epochs: int, batch_size: int) -> None:
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not 1 <= batch_size <= len(split):
        raise ValueError(f"batch_size must be between 1 and the {len(split)} images of the split, got {batch_size}")
