"""The loss of a network that learns from labels and from another network."""

import jax
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "B classes"], labels: Int[Array, "B"], smoothing: float = 0.0
) -> Float[Array, ""]:
    """The mean cross-entropy, with a share of the target spread over all classes (Szegedy et al. 2016, section 7).

    >>> import jax.numpy as jnp
    >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])))
    1.3862944
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def divergence(
    logits: Float[Array, "B classes"], teacher: Float[Array, "B classes"], temperature: float
) -> Float[Array, ""]:
    """How far the answers are from a teacher's: `T^2 KL(softmax(teacher / T) || softmax(logits / T))`, the mean.

    The factor keeps the size of the gradient the same at every temperature (Hinton et al. 2015, arXiv 1503.02531,
    section 2). No gradient goes to the teacher.

    >>> import jax.numpy as jnp
    >>> print(f"{divergence(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, jnp.log(9)]]), temperature=1.0):.3f}")
    0.368
    """
    wanted = jax.nn.softmax(jax.lax.stop_gradient(teacher) / temperature)
    found = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * optax.losses.kl_divergence(found, wanted).mean()
