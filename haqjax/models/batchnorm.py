"""Building blocks of the networks: a bias-free convolution with batch normalisation, a classifier."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

MOMENTUM = 0.9  # fraction of the running statistics kept at each training step (0.1 replaced: torchvision's default)
EPSILON = 1e-5  # added to the variance (torchvision's default)
LAYOUT = ("NHWC", "HWIO", "NHWC")
SYMMETRIC, SAME = PADDINGS = ("symmetric", "same")


@dataclasses.dataclass(frozen=True)
class Convention:
    """Convention of an implementation: weights trained under one are wrong under another.

    Args:
      padding: "symmetric" puts `(kernel - 1) / 2` zeros on every side, as PyTorch; "same" is TensorFlow's: at stride 2
        on an even map one row below and one column to the right of a 3x3 kernel, none above.
      epsilon: added to the variance by batch normalisation.

    Raises:
      ValueError: another padding, or an epsilon that is not positive.

    >>> Convention("same", 1e-3).window(3)
    'SAME'
    """

    padding: str = SYMMETRIC
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        if self.padding not in PADDINGS:
            raise ValueError(f"unknown padding {self.padding!r}; there are {', '.join(PADDINGS)}")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {self.epsilon!r}")

    def window(self, kernel: int) -> str | tuple[tuple[int, int], tuple[int, int]]:
        """Returns the padding of a `kernel` x `kernel` window for `jax.lax.conv_general_dilated`."""
        return "SAME" if self.padding == SAME else ((kernel // 2, kernel // 2),) * 2


class ConvNorm(nnx.Module):
    """A convolution without bias, then batch normalisation.

    Its leaves are `kernel` [height, width, in / groups, out] and `norm.scale`, `norm.bias`, `norm.mean`, `norm.var`
    [out]; the last two are running statistics, which `train` replaces by those of the batch and moves towards them.
    The kernel is zero until `haqjax.models.build` draws it.

    Args:
      convention: its padding and epsilon.
      c_in: input channels, all groups together.
      c_out: output channels, all groups together.
      kernel: height and width of the kernel.
      stride: of both axes.
      groups: `c_in` for a depthwise convolution.
      scale: value of `norm.scale` at the start.
    """

    def __init__(
        self,
        convention: Convention,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        scale: float = 1.0,
    ):
        shape = (kernel, kernel, c_in // groups, c_out)
        self.kernel = nnx.Param(jnp.zeros(shape))
        initial = nnx.initializers.constant(scale)
        epsilon = convention.epsilon
        self.norm = nnx.BatchNorm(c_out, momentum=MOMENTUM, epsilon=epsilon, scale_init=initial, rngs=nnx.Rngs(0))
        self.stride = (stride, stride)
        self.groups = groups
        self.padding = convention.window(kernel)

    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w c"]:
        y = jax.lax.conv_general_dilated(
            x, self.kernel[...], self.stride, self.padding, dimension_numbers=LAYOUT, feature_group_count=self.groups
        )
        return self.norm(y, use_running_average=not train)


class Classifier(nnx.Module):
    """Mean over the map, then a dense layer with bias.

    Its leaves are `kernel` [features, classes] and `bias` [classes].
    """

    def __init__(self, features: int, classes: int):
        self.kernel = nnx.Param(jnp.zeros((features, classes)))
        self.bias = nnx.Param(jnp.zeros(classes))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B classes"]:
        return x.mean((1, 2)) @ self.kernel[...] + self.bias[...][None, :]


def round_channels(channels: int, width: float, divisor: int = 8) -> int:
    """Rounds channels after a width multiplier to the nearest multiple of `divisor`, never below 90 % of the exact one.

    The rule of the MobileNets (Sandler et al. 2018 and its released code).

    Args:
      channels: number at width 1.
      width: multiplier.
      divisor: the result is a multiple of it, and at least that.

    Returns:
      The number of channels.

    >>> round_channels(32, 1.0), round_channels(24, 0.5), round_channels(16, 0.3)
    (32, 16, 8)
    """
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded
