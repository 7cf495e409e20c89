"""Re-estimation of batch norm's running statistics under a policy (Sun et al. 2019, arXiv 1812.04368)."""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from haqjax.quantizers.integer_layers import quantize
from haqjax.types import Ranges


def reestimate_statistics(
    apply_train: Callable[[PyTree, Array], tuple[Array, PyTree]],
    params: PyTree,
    policy: Int[Array, "L 2"],
    ranges: Ranges,
    batches: Iterable[Float[Array, "B H W C"]],
) -> PyTree:
    """Moves the running statistics to those of the quantised network; nothing is trained.

    Quantisation shifts the means and variances that batch norm was trained with. Every batch moves them as a training
    step does, so of the old ones a fraction of `0.9 ** n` is left after `n` batches. The result suits one policy.

    Args:
      apply_train: `(params, images) -> (logits, params with statistics moved)`, as `haqjax.models.Network` has it. In a
        network whose batch norm was folded, `haqjax.models.restore_batchnorm` puts statistics back first.
      params: parameters, with running statistics.
      policy, ranges: as for `haqjax.quantize`.
      batches: images, training images as a rule; 20 batches of 64 or more.

    Returns:
      `params` with other statistics.

    >>> from haqjax.models import build
    >>> from haqjax.quantizers import calibrate
    >>> network = build("resnet20", classes=2, image_size=8, width=0.25, key=jax.random.key(0))
    >>> images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    >>> ranges, policy = calibrate(network.apply, network.params, [images]), jnp.full((20, 2), 4)
    >>> moved = reestimate_statistics(network.apply_train, network.params, policy, ranges, [images] * 2)
    >>> bool(jnp.allclose(moved["stem"]["norm"]["mean"], network.params["stem"]["norm"]["mean"], atol=1e-5))
    False
    """
    step = _make_step(apply_train)
    for images in batches:
        params = step(params, jnp.asarray(images), jnp.asarray(policy), ranges)
    return params


@functools.lru_cache(maxsize=8)
def _make_step(apply_train: Callable) -> Callable[..., PyTree]:
    return jax.jit(lambda *arguments: quantize(apply_train)(*arguments)[1])
