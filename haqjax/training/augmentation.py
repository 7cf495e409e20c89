"""Random augmentation of training images: shifts and mirroring, which keep their labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def augment(images: Float[Array, "B H W C"], *, shift: int, flip: bool, key: PRNGKeyArray) -> Float[Array, "B H W C"]:
    """Moves each image by its own random number of pixels, and mirrors it or not.

    Args:
      images: any values; what moves in from outside is 0.
      shift: the most pixels moved, up or down and left or right, all moves equally likely; 0 moves none.
      flip: whether half of the images are mirrored left to right.
      key: drawn from once.

    Returns:
      Images of the same shape.

    >>> image = jnp.arange(9.0).reshape(1, 3, 3, 1)
    >>> bool((augment(image, shift=0, flip=False, key=jax.random.key(0)) == image).all())
    True
    """
    if not isinstance(images, jax.Array) or images.ndim != 4:  # inputs that are no images
        return images
    shift_key, flip_key = jax.random.split(key)
    count, *shape = images.shape
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    corners = jax.random.randint(shift_key, (count, 2), 0, 2 * shift + 1)
    moved = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))(padded, corners)
    if not flip:
        return moved
    mirrored = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
    return jnp.where(mirrored, moved[:, :, ::-1, :], moved)
