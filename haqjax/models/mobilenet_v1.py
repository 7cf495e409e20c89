"""MobileNet-V1 (Howard et al. 2017, arXiv 1704.04861)."""

from flax import nnx
from jaxtyping import Array, Float

from haqjax.models.batchnorm import Classifier, Convention, ConvNorm, round_channels

# (output channels, stride of the depthwise convolution) of the 13 blocks: Table 1 of the paper
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


class SeparableBlock(nnx.Module):
    """A depthwise 3x3 and a pointwise convolution, each with batch norm and ReLU6."""

    def __init__(self, convention: Convention, c_in: int, c_out: int, stride: int):
        self.depthwise = ConvNorm(convention, c_in, c_in, 3, stride, groups=c_in)
        self.pointwise = ConvNorm(convention, c_in, c_out)

    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w c"]:
        x = nnx.relu6(self.depthwise(x, train))
        return nnx.relu6(self.pointwise(x, train))


class MobileNetV1(nnx.Module):
    """MobileNet-V1: the stem, 13 separable blocks, the classifier: 28 layers.

    The authors' release pads "same". No dropout.
    """

    def __init__(self, classes: int, width: float, convention: Convention):
        channels = [round_channels(c, width) for c, _ in ((32, 2), *BLOCKS)]
        sizes = zip(channels, channels[1:], (stride for _, stride in BLOCKS), strict=False)
        self.stem = ConvNorm(convention, 3, channels[0], 3, 2)
        self.blocks = nnx.List([SeparableBlock(convention, *size) for size in sizes])
        self.classifier = Classifier(channels[-1], classes)

    def __call__(self, x: Float[Array, "B H W 3"], train: bool = False) -> Float[Array, "B classes"]:
        x = nnx.relu6(self.stem(x, train))
        for block in self.blocks:
            x = block(x, train)
        return self.classifier(x)
