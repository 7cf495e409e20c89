"""MobileNet-V1: timm's naming, transformers', and that of weights with folded batch norm."""

from haqjax.models.batchnorm import SAME
from haqjax.models.layouts.layout import BACKGROUND_APART, TENSORFLOW_EPSILON, Layout, Unit, staged


def _timm() -> dict[str, Unit]:
    units = {"stem": Unit("conv_stem", "bn1"), "classifier": Unit("classifier")}
    for i, (stage, block) in enumerate(staged((1, 2, 2, 6, 2))):
        at = f"blocks.{stage}.{block}"
        units[f"blocks.{i}.depthwise"] = Unit(f"{at}.conv_dw", f"{at}.bn1")
        units[f"blocks.{i}.pointwise"] = Unit(f"{at}.conv_pw", f"{at}.bn2")
    return units


def _transformers() -> dict[str, Unit]:
    def unit(at: str) -> Unit:
        return Unit(f"mobilenet_v1.{at}.convolution", f"mobilenet_v1.{at}.normalization")

    units = {"stem": unit("conv_stem"), "classifier": Unit("classifier")}
    for i in range(13):
        units[f"blocks.{i}.depthwise"] = unit(f"layer.{2 * i}")
        units[f"blocks.{i}.pointwise"] = unit(f"layer.{2 * i + 1}")
    return units


def _folded() -> dict[str, Unit]:
    def unit(at: str) -> Unit:
        return Unit(at, at)

    units = {"stem": unit("stem"), "classifier": Unit("classifier")}
    for i in range(13):
        units[f"blocks.{i}.depthwise"] = unit(f"block{i + 1}.dw")
        units[f"blocks.{i}.pointwise"] = unit(f"block{i + 1}.pw")
    return units


MOBILENET_V1 = (
    Layout("timm", "mobilenet_v1", _timm(), "timm_mobilenet_v1"),
    Layout(
        "transformers",
        "mobilenet_v1",
        _transformers(),
        "mobilenet_v2_tf_256",
        padding=SAME,
        epsilon=TENSORFLOW_EPSILON,
        background=True,
    ),
    Layout("folded", "mobilenet_v1", _folded(), "mobilenet_v1_tf", padding=SAME, ignored=BACKGROUND_APART, folded=True),
)
