"""Fine-tuning a network under one policy, with the straight-through estimator."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from haqjax.capture import Apply, is_statistic
from haqjax.data import Split
from haqjax.quantize.forward import quantize
from haqjax.train.fit import Progress, train
from haqjax.types import Ranges


def finetune(
    apply: Apply,
    params: PyTree,
    policy: Int[Array, "L 2"],
    ranges: Ranges,
    data: Split,
    *,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    weight_decay: float = 5e-4,
    shift: int = 2,
    flip: bool = False,
    key: PRNGKeyArray,
    on_epoch: Callable[[Progress], None] | None = None,
) -> PyTree:
    """Trains the weights that a policy rounds, so that they do well once rounded.

    The forward pass is quantised, the gradient passes straight through the rounding (Wang et al. 2019, section 3.5).
    The optimiser is that of `fit`. Clip values stay as calibrated, relative to each weight's channel, and so do the
    running statistics of batch normalisation.

    Args:
      apply: pure function `apply(params, images)`.
      params: the trained float parameters.
      policy, ranges: as for `quantize`.
      data: the images to train on.
      epochs, batch_size, learning_rate, weight_decay, shift, flip, key, on_epoch: as for `fit`.

    Returns:
      Parameters of the same structure, in floating point: evaluate them with the same policy and ranges.

    Raises:
      ValueError: as `fit` and `quantize`, or a parameter that is no floating-point number.

    >>> import jax.numpy as jnp, numpy as np
    >>> from haqjax.quantize import calibrate
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
    _check_trainable(params)
    quantised = quantize(apply)

    def apply_train(params: PyTree, x: Array, policy: Array, ranges: Ranges) -> tuple[Array, PyTree]:
        return quantised(_hold_statistics(params), x, policy, ranges), params

    return train(
        apply_train, params, data, policy, ranges, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        weight_decay=weight_decay, shift=shift, flip=flip, key=key, on_epoch=on_epoch,
    )  # fmt: skip


def _check_trainable(params: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"params{name} is {leaf.dtype}, which has no gradient: keep it out of `params`")


def _hold_statistics(params: PyTree) -> PyTree:
    hold = lambda path, leaf: jax.lax.stop_gradient(leaf) if is_statistic(path) else leaf  # noqa: E731
    return jax.tree_util.tree_map_with_path(hold, params)
