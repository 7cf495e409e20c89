"""Residual networks (He et al. 2016, arXiv 1512.03385): ResNet-50 for ImageNet, ResNet-20 and ResNet-56 for CIFAR."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from haqjax.models.batchnorm import Classifier, Convention, ConvNorm, round_channels

EXPANSION = 4  # output channels of a bottleneck over its inner ones
BOTTLENECK_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # ResNet-50: (inner channels, blocks, stride)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the stride is on the 3x3 ("v1.5", as torchvision)."""

    def __init__(self, convention: Convention, c_in: int, inner: int, stride: int, scale: float):
        c_out = inner * EXPANSION
        self.reduce = ConvNorm(convention, c_in, inner)
        self.spatial = ConvNorm(convention, inner, inner, 3, stride)
        self.expand = ConvNorm(convention, inner, c_out, scale=scale)
        self.shortcut = ConvNorm(convention, c_in, c_out, 1, stride) if stride > 1 or c_in != c_out else None

    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w c"]:
        y = nnx.relu(self.reduce(x, train))
        y = nnx.relu(self.spatial(y, train))
        y = self.expand(y, train)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, train)))


class ResNet50(nnx.Module):
    """ResNet-50: a 7x7 stem with max pooling, 16 bottlenecks, the classifier: 54 layers with the 4 shortcuts."""

    def __init__(self, classes: int, width: float, convention: Convention):
        channels = round_channels(64, width, 1)
        self.stem = ConvNorm(convention, 3, channels, 7, 2)
        self.pool = convention.window(3)
        blocks, scale = [], _last_scale(sum(count for _, count, _ in BOTTLENECK_STAGES))
        for inner, count, first in BOTTLENECK_STAGES:
            for stride in (first, *(1,) * (count - 1)):
                blocks.append(Bottleneck(convention, channels, round_channels(inner, width, 1), stride, scale))
                channels = round_channels(inner, width, 1) * EXPANSION
        self.blocks = nnx.List(blocks)
        self.classifier = Classifier(channels, classes)

    def __call__(self, x: Float[Array, "B H W 3"], train: bool = False) -> Float[Array, "B classes"]:
        x = nnx.relu(self.stem(x, train))
        x = nnx.max_pool(x, (3, 3), (2, 2), self.pool)
        for block in self.blocks:
            x = block(x, train)
        return self.classifier(x)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions beside a shortcut without parameters."""

    def __init__(self, convention: Convention, c_in: int, c_out: int, stride: int, scale: float):
        self.first = ConvNorm(convention, c_in, c_out, 3, stride)
        self.second = ConvNorm(convention, c_out, c_out, 3, scale=scale)
        self.stride = stride

    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w c"]:
        y = nnx.relu(self.first(x, train))
        y = self.second(y, train)
        return nnx.relu(y + _zero_padded_shortcut(x, y.shape[-1], self.stride))


class CifarResNet(nnx.Module):
    """CIFAR ResNet: a 3x3 stem, three stages of `blocks_per_stage` basic blocks, the classifier.

    It has `6 blocks_per_stage + 2` layers.
    """

    def __init__(self, classes: int, width: float, convention: Convention, *, blocks_per_stage: int):
        channels = round_channels(16, width, 1)
        self.stem = ConvNorm(convention, 3, channels, 3)
        blocks, scale = [], _last_scale(3 * blocks_per_stage)
        for c_out, first in ((16, 1), (32, 2), (64, 2)):
            for stride in (first, *(1,) * (blocks_per_stage - 1)):
                blocks.append(BasicBlock(convention, channels, round_channels(c_out, width, 1), stride, scale))
                channels = round_channels(c_out, width, 1)
        self.blocks = nnx.List(blocks)
        self.classifier = Classifier(channels, classes)

    def __call__(self, x: Float[Array, "B H W 3"], train: bool = False) -> Float[Array, "B classes"]:
        x = nnx.relu(self.stem(x, train))
        for block in self.blocks:
            x = block(x, train)
        return self.classifier(x)


def _zero_padded_shortcut(x: Float[Array, "B H W C"], channels: int, stride: int) -> Float[Array, "B h w c"]:
    """Takes every `stride`-th pixel of `x`, with channels of zeros around it up to `channels`: option A of the paper.

    Half of the zeros stand before the channels of `x`, as in the PyTorch releases of these networks.

    >>> _zero_padded_shortcut(jnp.ones((1, 4, 4, 2)), 4, 2)[0, 0, 0].tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    missing = channels - x.shape[-1]
    before = missing // 2
    return jnp.pad(x[:, ::stride, ::stride, :], ((0, 0), (0, 0), (0, 0), (before, missing - before)))


def _last_scale(blocks: int) -> float:
    """Returns the last batch-norm scale of a fresh block; all blocks together vary no more than one at scale 1.

    At 1 the deep ones train far slower; at 0 (Goyal et al. 2017) a little slower, and the blocks would start idle.
    """
    return blocks**-0.5
