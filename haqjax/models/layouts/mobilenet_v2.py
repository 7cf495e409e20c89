"""MobileNetV2: torchvision's naming, timm's, transformers', and that of weights with folded batch norm."""

from haqjax.models.batchnorm import SAME
from haqjax.models.layouts.layout import BACKGROUND_APART, TENSORFLOW_EPSILON, Layout, Unit, staged

BLOCKS = 17


def _torchvision() -> dict[str, Unit]:
    def unit(at: str) -> Unit:
        return Unit(f"{at}.0", f"{at}.1")

    units = {"stem": unit("features.0"), "head": unit("features.18"), "classifier": Unit("classifier.1")}
    for i in range(BLOCKS):
        at, depthwise = f"features.{i + 1}.conv", int(i > 0)  # the first block does not expand
        if i > 0:
            units[f"blocks.{i}.expand"] = unit(f"{at}.0")
        units[f"blocks.{i}.depthwise"] = unit(f"{at}.{depthwise}")
        units[f"blocks.{i}.project"] = Unit(f"{at}.{depthwise + 1}", f"{at}.{depthwise + 2}")
    return units


def _timm() -> dict[str, Unit]:
    units = {"stem": Unit("conv_stem", "bn1"), "head": Unit("conv_head", "bn2"), "classifier": Unit("classifier")}
    expanding = (("expand", "conv_pw"), ("depthwise", "conv_dw"), ("project", "conv_pwl"))
    for i, (stage, block) in enumerate(staged((1, 2, 3, 4, 3, 3, 1))):
        parts = expanding if i > 0 else (("depthwise", "conv_dw"), ("project", "conv_pw"))
        for number, (ours, theirs) in enumerate(parts, 1):
            at = f"blocks.{stage}.{block}"
            units[f"blocks.{i}.{ours}"] = Unit(f"{at}.{theirs}", f"{at}.bn{number}")
    return units


def _transformers() -> dict[str, Unit]:
    def unit(at: str) -> Unit:
        return Unit(f"mobilenet_v2.{at}.convolution", f"mobilenet_v2.{at}.normalization")

    units = {"stem": unit("conv_stem.first_conv"), "head": unit("conv_1x1"), "classifier": Unit("classifier")}
    for i in range(BLOCKS):
        at = f"layer.{i - 1}" if i > 0 else "conv_stem"
        if i > 0:
            units[f"blocks.{i}.expand"] = unit(f"{at}.expand_1x1")
        units[f"blocks.{i}.depthwise"] = unit(f"{at}.conv_3x3")
        units[f"blocks.{i}.project"] = unit(f"{at}.reduce_1x1")
    return units


def _folded() -> dict[str, Unit]:
    def unit(at: str) -> Unit:
        return Unit(at, at)

    units = {"stem": unit("stem"), "head": unit("head"), "classifier": Unit("classifier")}
    for i in range(BLOCKS):
        if i > 0:
            units[f"blocks.{i}.expand"] = unit(f"block{i}.expand")
        units[f"blocks.{i}.depthwise"] = unit(f"block{i}.dw")
        units[f"blocks.{i}.project"] = unit(f"block{i}.project")
    return units


MOBILENET_V2 = (
    Layout("torchvision", "mobilenet_v2", _torchvision(), "torchvision"),
    Layout("timm", "mobilenet_v2", _timm(), "timm"),
    Layout(
        "transformers",
        "mobilenet_v2",
        _transformers(),
        "mobilenet_v2_tf_256",
        padding=SAME,
        epsilon=TENSORFLOW_EPSILON,
        background=True,
    ),
    Layout("folded", "mobilenet_v2", _folded(), "mobilenet_v2_tf", padding=SAME, ignored=BACKGROUND_APART, folded=True),
)
