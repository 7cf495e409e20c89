"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381)."""

from flax import nnx
from jaxtyping import Array, Float

from haqjax.models.batchnorm import Classifier, Convention, ConvNorm, round_channels

# (expansion, output channels, blocks, stride of the first block): Table 2 of the paper
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nnx.Module):
    """Pointwise expansion (none where `expansion` is 1), depthwise 3x3, linear pointwise projection.

    The input is added to the output where the two have the same shape.
    """

    def __init__(self, convention: Convention, c_in: int, c_out: int, expansion: int, stride: int):
        hidden = c_in * expansion
        self.expand = ConvNorm(convention, c_in, hidden) if expansion > 1 else None
        self.depthwise = ConvNorm(convention, hidden, hidden, 3, stride, groups=hidden)
        self.project = ConvNorm(convention, hidden, c_out)
        self.residual = stride == 1 and c_in == c_out

    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w c"]:
        y = nnx.relu6(self.expand(x, train)) if self.expand is not None else x
        y = nnx.relu6(self.depthwise(y, train))
        y = self.project(y, train)
        return x + y if self.residual else y


class MobileNetV2(nnx.Module):
    """MobileNetV2: the stem, 17 inverted residuals, a pointwise head, the classifier: 53 layers.

    The head keeps 1,280 channels at widths below 1. No dropout.
    """

    def __init__(self, classes: int, width: float, convention: Convention):
        channels = round_channels(32, width)
        self.stem = ConvNorm(convention, 3, channels, 3, 2)
        blocks = []
        for expansion, c_out, count, first in STAGES:
            for stride in (first, *(1,) * (count - 1)):
                out = round_channels(c_out, width)
                blocks.append(InvertedResidual(convention, channels, out, expansion, stride))
                channels = out
        self.blocks = nnx.List(blocks)
        last = round_channels(1280, max(1.0, width))
        self.head = ConvNorm(convention, channels, last)
        self.classifier = Classifier(last, classes)

    def __call__(self, x: Float[Array, "B H W 3"], train: bool = False) -> Float[Array, "B classes"]:
        x = nnx.relu6(self.stem(x, train))
        for block in self.blocks:
            x = block(x, train)
        return self.classifier(nnx.relu6(self.head(x, train)))
