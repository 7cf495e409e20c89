"""Loop of compiled training steps, for fitting as for fine-tuning."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from haqjax.data import Source, Split, batches
from haqjax.sharding import make_mesh, replicate, shard_batch
from haqjax.training.augmentation import augment
from haqjax.training.checkpoints import Checkpoints

# (learned, images, labels, context) -> (loss, (learned with statistics moved, [loss, fraction of right answers]))
Objective = Callable[[PyTree, Array, Array, Any], tuple[Array, tuple[PyTree, Array]]]


class Progress(NamedTuple):
    """One epoch of training, measured on the augmented training images as it went along."""

    epoch: int  # 1 .. epochs
    epochs: int
    loss: float
    accuracy: float  # 0 .. 1


CHECK = 64  # steps between two looks at whether all is finite: a look waits for the device


class State(NamedTuple):
    """Arrays that a step changes."""

    learned: PyTree
    optimiser: optax.OptState
    total: Float[Array, "2"]  # loss and fraction of right answers, summed over the steps of the epoch so far
    steps: Int[Array, ""]  # done so far
    failed: Int[
        Array, ""
    ]  # the first step, from 1, whose result was not finite; 0: none. Nothing is learned from it on


class NotFiniteError(ValueError):
    """A training step whose loss or parameters are not finite, with what it started from."""

    def __init__(self, step: int, learned: PyTree, batch: tuple[Array, Array], found: str):
        super().__init__(f"training is not finite at step {step}: {found}; lower the learning rate")
        self.step, self.learned, self.batch = step, learned, batch


@dataclasses.dataclass(frozen=True)
class Passes:
    """Passes over the training images: their batches and augmentation."""

    epochs: int
    batch_size: int  # images a step; the last few of an epoch that make no whole batch are left out
    shift: int  # images are moved by up to so many pixels
    flip: bool  # whether images are mirrored at random

    def count_steps(self, count: int) -> int:
        """Counts the steps over all epochs of `count` images.

        Raises:
          ValueError: a number of epochs or images that is not positive, or a batch larger than `count`.
        """
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not 1 <= self.batch_size <= count:
            raise ValueError(f"batch_size must be between 1 and the {count} images of the split, got {self.batch_size}")
        return self.epochs * (count // self.batch_size)


def run_steps(
    objective: Objective,
    optimiser: optax.GradientTransformation,
    learned: PyTree,
    split: Split | Source,
    passes: Passes,
    *,
    key: PRNGKeyArray,
    context: Any = (),
    mesh: Mesh | None = None,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Progress], None] | None = None,
) -> PyTree:
    """Moves what is learned down the gradient of an objective, batch after batch.

    The images of a step and their augmentation follow from the key and the number of the step. So resume is
    bit-identical: a training that is taken up again ends like one that was never stopped.

    Args:
      objective, optimiser: the same objects again do not compile again.
      learned: where to start; stays as it is.
      split: the images, in memory or on disk.
      key: order of the images and their augmentation.
      context: arrays that are read and not trained.
      mesh: devices to shard each batch over, see `haqjax.sharding.make_mesh`; None is one device.
      checkpoints: where the state is saved on the way; the training goes on from the newest one there.
      on_epoch: called after each epoch.

    Raises:
      ValueError: as `Passes.count_steps`; a batch that is not a multiple of the devices; checkpoints of another
        training; `NotFiniteError`, where a loss or a parameter becomes NaN or infinite.
    """
    each = passes.count_steps(len(split)) // passes.epochs
    mesh = make_mesh(1) if mesh is None else mesh
    step = make_step(objective, optimiser, passes.shift, passes.flip)
    context, learned = replicate((context, learned), mesh)
    state, done = begin_state(learned, jax.jit(optimiser.init)(learned)), 0
    if checkpoints is not None:
        state, done = checkpoints.restore(state)
    state = replicate(state, mesh)  # a copy: the step overwrites its own
    order_key, vary_key = jax.random.split(key)
    seed = int(jax.random.bits(order_key))

    def draw(start: int) -> Iterator[Split]:
        return batches(split, passes.batch_size, seed=seed, epochs=passes.epochs, start=start)

    for number, batch in enumerate(draw(done), start=done + 1):
        images, labels = shard_batch(batch, mesh)
        state = step(state, images, labels, jax.random.fold_in(vary_key, number), number % each == 1 % each, context)
        if (number % CHECK == 0 or number % each == 0) and (failed := int(state.failed)):
            images, labels = shard_batch(next(iter(draw(failed - 1))), mesh)
            varied = augment(images, shift=passes.shift, flip=passes.flip, key=jax.random.fold_in(vary_key, failed))
            found = _name_faults(objective, state.learned, varied, labels, context)
            raise NotFiniteError(failed, state.learned, (varied, labels), found)
        if checkpoints is not None:
            checkpoints.save(state, number, last=number == each * passes.epochs)
        if number % each == 0 and on_epoch is not None:
            on_epoch(Progress(number // each, passes.epochs, *(np.asarray(state.total) / each).tolist()))
    return state.learned


def take_step(
    objective: Objective,
    optimiser: optax.GradientTransformation,
    state: State,
    images: Float[Array, "B H W C"],
    labels: Array,
    context: Any,
) -> State:
    """Takes one step down the gradient; none once a loss or a parameter was not finite, see `State.failed`."""
    gradient, (moved, measures) = jax.grad(objective, has_aux=True)(state.learned, images, labels, context)
    updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.learned)
    # Running statistics get no gradient and no decay: their update is zero, and they stay as the objective moved them.
    learned, steps = optax.apply_updates(moved, updates), state.steps + 1
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in (measures, *jax.tree.leaves(learned))]).all()
    failed = jnp.where((state.failed > 0) | finite, state.failed, steps)
    found = State(learned, optimiser_state, state.total + measures, steps, failed)
    return jax.tree.map(
        lambda new, old: jnp.where(failed == 0, new, old), found, state._replace(steps=steps, failed=failed)
    )


def begin_state(learned: PyTree, optimiser: optax.OptState) -> State:
    """Makes the state before the first step."""
    return State(learned, optimiser, jnp.zeros(2), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


@functools.lru_cache(maxsize=8)
def make_step(objective: Objective, optimiser: optax.GradientTransformation, shift: int, flip: bool) -> Callable:
    """Makes the compiled step; the same arguments give the same function."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: State, images: Array, labels: Array, key: PRNGKeyArray, first: Bool[Array, ""], context: Any
    ) -> State:
        state = state._replace(total=jnp.where(first, 0, state.total))
        varied = augment(images, shift=shift, flip=flip, key=key)
        return take_step(objective, optimiser, state, varied, labels, context)

    return step


def _name_faults(objective: Objective, learned: PyTree, images: Array, labels: Array, context: Any) -> str:
    """Names the parameters whose gradient is not finite in a step that failed, or else the one that has grown most."""
    gradient = jax.jit(jax.grad(objective, has_aux=True))(learned, images, labels, context)[0]
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    bad = [name for name, (_, leaf) in zip(names, leaves, strict=True) if not jnp.isfinite(leaf).all()]
    if bad:
        return f"the gradient of {bad[0]} ({len(bad)} such parameters of {len(leaves)})"
    largest = [float(jnp.abs(leaf).max()) if leaf.size else 0.0 for leaf in jax.tree.leaves(learned)]
    most = int(np.argmax(largest))
    return f"the update of {names[most]}, which had grown to {largest[most]:.2g}"
