"""Losses of a network that learns from labels, or by distillation from another network."""

import jax
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "B classes"], labels: Int[Array, "B"], smoothing: float = 0.0
) -> Float[Array, ""]:
    """Computes the mean cross entropy, with label smoothing (Szegedy et al. 2016, section 7).

    Smoothing divides that fraction of the target evenly among all classes.

    >>> import jax.numpy as jnp
    >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])))
    1.3862944
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def distillation_loss(
    logits: Float[Array, "B classes"], teacher: Float[Array, "B classes"], temperature: float
) -> Float[Array, ""]:
    """Computes the distillation loss: the mean of `T^2 KL(softmax(teacher / T) || softmax(logits / T))`.

    The factor keeps the size of the gradient the same at every temperature (Hinton et al. 2015, arXiv 1503.02531,
    section 2). No gradient goes to the teacher.

    >>> import jax.numpy as jnp
    >>> print(f"{distillation_loss(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, jnp.log(9)]]), temperature=1.0):.3f}")
    0.368
    """
    expected = jax.nn.softmax(jax.lax.stop_gradient(teacher) / temperature)
    found = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * optax.losses.kl_divergence(found, expected).mean()
