"""Fine-tuning (QAT) of a network under one policy, with the straight-through estimator."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from haqjax.data import Source, Split
from haqjax.data.labels import check_answers
from haqjax.quantizers.fake_quantize import check_policy
from haqjax.quantizers.trainable import Gradient, Learned, begin, end, quantize_learned
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, Compute, Hook, with_hook
from haqjax.tracing.jaxpr import Layer
from haqjax.tracing.names import is_statistic
from haqjax.tracing.parameters import check_params
from haqjax.training.checkpoints import fingerprint, open_checkpoints
from haqjax.training.distillation import cross_entropy, distillation_loss
from haqjax.training.fitting import SMOOTHING, make_sgd, mask_kernels
from haqjax.training.steps import NotFiniteError, Objective, Passes, Progress, run_steps
from haqjax.types import Ranges

ApplyTrain = Callable[..., tuple[Array, PyTree]]


class Tuned(NamedTuple):
    """A fine-tuned network: evaluate `params` under the policy with `ranges`."""

    params: PyTree
    ranges: Ranges


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Settings of fine-tuning. Parts of the network whose rate is 0 stay as they are."""

    epochs: int = 3  # passes over the data
    batch_size: int = 32  # images a step
    learning_rate: float = 2e-3  # of the weights, its largest value
    clip_rate: float = 0.0  # of the clip values
    codebook_rate: float = 0.0  # of k-means codebooks
    weight_decay: float = 5e-4  # of kernels, at a learning rate of one; nothing else decays
    shift: int = 2  # images are moved by up to so many pixels
    flip: bool = False  # whether images are mirrored at random
    smoothing: float = SMOOTHING  # label smoothing
    distill: float = 0.0  # fraction of the loss that compares with the float network's answers
    temperature: float = 4.0  # at which they are compared
    gradient: Gradient = "lsq"  # of the clip values, or "pact"

    def __post_init__(self) -> None:
        rates = (self.learning_rate, self.clip_rate, self.codebook_rate)
        if min(rates) < 0 or max(rates) == 0:
            raise ValueError(f"the learning rates {rates} must be at least 0, and one of them more")
        if not 0 <= self.distill <= 1 or not self.temperature > 0:
            raise ValueError(f"distill {self.distill} must be in 0..1, and temperature {self.temperature} more than 0")

    @property
    def passes(self) -> Passes:
        return Passes(self.epochs, self.batch_size, self.shift, self.flip)


def finetune(
    apply: Apply,
    params: PyTree,
    policy: Int[Array, "L 2"],
    ranges: Ranges,
    data: Split | Source,
    *,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    weight_decay: float = 5e-4,
    shift: int = 2,
    flip: bool = False,
    key: PRNGKeyArray,
    apply_train: ApplyTrain | None = None,
    on_epoch: Callable[[Progress], None] | None = None,
) -> PyTree:
    """Trains the weights that a policy rounds, so that they do well once rounded.

    `finetune_all` with clip values as calibrated, relative to each weight's channel.

    Args:
      apply, params, policy, ranges, data, key, apply_train, on_epoch: as for `finetune_all`.
      epochs, batch_size, learning_rate, weight_decay, shift, flip: as in `Tuning`.

    Returns:
      Parameters of the same structure, in floating point: evaluate them with the same policy and ranges.

    Raises:
      ValueError: as `finetune_all`.

    >>> import jax.numpy as jnp, numpy as np
    >>> from haqjax.quantizers import calibrate, quantize
    >>> apply = lambda params, x: x.reshape(len(x), -1) @ params["w"]
    >>> images = np.array([-1, 1, -1, 1], np.float32)[:, None, None, None] * np.ones((2, 2, 1), np.float32)
    >>> params, policy = {"w": jnp.ones((4, 2)) / 4}, jnp.array([[2, 8]])
    >>> ranges, data = calibrate(apply, params, [images]), Split(images, np.arange(4) % 2)
    >>> tuned = finetune(
    ...     apply, params, policy, ranges, data, batch_size=4, learning_rate=0.1, shift=0, key=jax.random.key(0)
    ... )
    >>> quantize(apply)(tuned, images, policy, ranges).argmax(-1).tolist()
    [0, 1, 0, 1]
    """
    tuning = Tuning(epochs, batch_size, learning_rate, weight_decay=weight_decay, shift=shift, flip=flip)
    options = dict(key=key, apply_train=apply_train, on_epoch=on_epoch)
    return finetune_all(apply, params, policy, ranges, data, tuning, **options).params  # type: ignore[arg-type]


def finetune_all(
    apply: Apply,
    params: PyTree,
    policy: Int[Array, "L 2"],
    ranges: Ranges,
    data: Split | Source,
    tuning: Tuning = Tuning(),
    *,
    key: PRNGKeyArray,
    apply_train: ApplyTrain | None = None,
    mesh: Mesh | None = None,
    checkpoints: str | Path | None = None,
    every: int = 200,
    on_epoch: Callable[[Progress], None] | None = None,
) -> Tuned:
    """Trains weights, clip values and codebooks under a policy, each at its rate in `tuning`.

    The forward pass is quantised, the gradient passes straight through the rounding (Wang et al. 2019, section 3.5),
    see `haqjax.quantizers.trainable.quantize_learned`. SGD with Nesterov momentum, linear warm-up, then cosine. Another
    policy, or other ranges, of the same network do not compile again.

    Args:
      apply: pure function `apply(params, images)`.
      params: the trained float parameters, which also teach where `tuning.distill` says so.
      policy, ranges: as for `haqjax.quantize`.
      data: the images to train on.
      tuning: how.
      key: order of the images and their augmentation.
      apply_train: `(params, images) -> (logits, params with statistics moved)`: batch normalisation by the batch, as
        `haqjax.models.Network` has it. None: by the running statistics, which stay as they are.
      mesh: devices to shard each batch over, see `haqjax.sharding.make_mesh`; None is one device.
      checkpoints: folder to save the training in on the way. Where one of the same configuration stopped, it goes on
        from there, and ends as if it had never stopped, to the last bit.
      every: steps between two checkpoints.
      on_epoch: called after each epoch.

    Returns:
      Parameters and ranges of the same structure: `quantize(apply)(tuned.params, x, policy, tuned.ranges)`.

    Raises:
      ValueError: as `quantize`; a parameter that is no floating-point number; a number of epochs or images that is not
        positive; a label beyond the network's classes; a batch larger than the data or not a multiple of the devices;
        checkpoints of another fine-tuning; a loss, parameter or clip that becomes NaN or infinite, with the step and
        the first layer whose output is.
    """
    _check_trainable(params)
    check_params(params)
    example = data.shaped(1)
    check_policy(apply, params, example, policy, ranges)
    check_answers(apply, params, data, example)
    policy = jnp.asarray(policy)
    objective, optimiser = make_program(apply, apply_train, tuning, tuning.passes.count_steps(len(data)))
    start, context = begin(params, policy, ranges), (policy, ranges, params if tuning.distill else None)
    program = (objective, optimiser, start, data, tuning.passes)
    run = functools.partial(run_steps, *program, key=key, context=context, mesh=mesh, on_epoch=on_epoch)
    with _name_layer(apply, context):
        if checkpoints is None:
            learned = run()
        else:
            configuration = _identify(params, policy, ranges, data, tuning, key, apply_train is None)
            with open_checkpoints(checkpoints, configuration, every) as opened:
                learned = run(checkpoints=opened)
    return Tuned(learned.params, end(apply, learned, example, policy, ranges))


@functools.lru_cache(maxsize=8)
def make_program(
    apply: Apply, apply_train: ApplyTrain | None, tuning: Tuning, steps: int, hook: Hook = use_cpu_kernels
) -> tuple[Objective, optax.GradientTransformation]:
    """Makes the objective that `run_steps` takes, and the optimiser.

    It learns a `Learned`; the context is the policy, the ranges and the teacher's parameters. The same
    arguments give the same objects.
    """
    moving = _hold_statistics(apply) if apply_train is None else apply_train
    forward = quantize_learned(moving, gradient=tuning.gradient, hook=hook)
    rates = {"params": tuning.learning_rate, "clip": tuning.clip_rate, "codebooks": tuning.codebook_rate}
    decay = {"params": optax.add_decayed_weights(tuning.weight_decay, mask=mask_kernels)}
    parts = {
        name: optax.chain(decay.get(name, optax.identity()), make_sgd(rate, steps)) for name, rate in rates.items()
    }
    return _make_objective(with_hook(apply, hook), forward, tuning), optax.partition(parts, _name_parts)


def _make_objective(teach: Apply, forward: Callable, tuning: Tuning) -> Objective:
    def objective(learned: Learned, images: Array, labels: Array, context: tuple) -> tuple[Array, tuple[PyTree, Array]]:
        policy, ranges, teacher = context
        logits, moved = forward(_hold(learned, tuning), images, policy, ranges)
        loss = (1 - tuning.distill) * cross_entropy(logits, labels, tuning.smoothing)
        if tuning.distill:
            loss += tuning.distill * distillation_loss(logits, teach(teacher, images), tuning.temperature)
        measures = jnp.stack([loss, jnp.mean(logits.argmax(-1) == labels)])
        return loss, (learned._replace(params=moved), measures)

    return objective


def _name_parts(learned: Learned) -> Learned:
    return Learned("params", "clip", None if learned.codebooks is None else "codebooks")  # type: ignore[arg-type]


def _hold(learned: Learned, tuning: Tuning) -> Learned:
    """Stops gradients of parts that are not to be learned, which then cost nothing."""
    rates = (tuning.learning_rate, tuning.clip_rate, tuning.codebook_rate)
    held = (part if rate else jax.lax.stop_gradient(part) for part, rate in zip(learned, rates, strict=True))
    return Learned(*held)


def _hold_statistics(apply: Apply) -> ApplyTrain:
    def hold(path: tuple, leaf: Array) -> Array:
        return jax.lax.stop_gradient(leaf) if is_statistic(path) else leaf

    def apply_train(params: PyTree, x: Array) -> tuple[Array, PyTree]:
        return apply(jax.tree_util.tree_map_with_path(hold, params), x), params

    return apply_train


@contextlib.contextmanager
def _name_layer(apply: Apply, context: tuple) -> Iterator[None]:
    """Adds to an error of a step that is not finite the first layer whose output is not."""
    try:
        yield
    except NotFiniteError as error:
        finite: list[tuple[str, Array]] = []

        def note(layer: Layer, activation: Array, weight: Array, compute: Compute) -> Array:
            y = compute(activation, weight)
            finite.append((layer.name, jnp.isfinite(y).all()))
            return y

        policy, ranges, _ = context
        quantize_learned(apply, hook=note)(error.learned, error.batch[0], policy, ranges)
        bad = next((name for name, good in finite if not good), None)
        if bad is None:
            raise
        raise ValueError(
            f"training is not finite at step {error.step}: the output of layer {bad!r}; lower the learning rate or "
            "give the layer more bits"
        ) from None


def _check_trainable(params: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(dtype, jnp.inexact)):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"params{name} is {dtype}, which has no gradient: keep it out of `params`")


def _identify(
    params: PyTree, policy: Array, ranges: Ranges, data: Split | Source, tuning: Tuning, key: Array, held: bool
) -> dict[str, Any]:
    """Identifies a fine-tuning by all of its inputs, for its checkpoints."""
    return dataclasses.asdict(tuning) | {
        "params": fingerprint(params),
        "policy": fingerprint(policy),
        "ranges": fingerprint(ranges),
        "labels": fingerprint(data.labels),
        "images": len(data),
        "key": fingerprint(jax.random.key_data(key)),
        "statistics": "running" if held else "batch",
    }
