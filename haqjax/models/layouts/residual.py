"""Residual networks: torchvision's naming, which is timm's, too, transformers', and that of the CIFAR networks."""

from haqjax.models.layouts.layout import Layout, Unit, staged

PARTS = ("reduce", "spatial", "expand")
RESNET50_BLOCKS = (3, 4, 6, 3)


def _cifar(blocks_per_stage: int) -> dict[str, Unit]:
    """Lists the units of github.com/akamaster/pytorch_resnet_cifar10, with shortcuts of option A."""
    units = {"stem": Unit("conv1", "bn1"), "classifier": Unit("linear")}
    for i, (stage, block) in enumerate(staged((blocks_per_stage,) * 3)):
        at = f"layer{stage + 1}.{block}"
        for number, part in enumerate(("first", "second"), 1):
            units[f"blocks.{i}.{part}"] = Unit(f"{at}.conv{number}", f"{at}.bn{number}")
    return units


def _torchvision() -> dict[str, Unit]:
    units = {"stem": Unit("conv1", "bn1"), "classifier": Unit("fc")}
    for i, (stage, block) in enumerate(staged(RESNET50_BLOCKS)):
        at = f"layer{stage + 1}.{block}"
        for number, part in enumerate(PARTS, 1):
            units[f"blocks.{i}.{part}"] = Unit(f"{at}.conv{number}", f"{at}.bn{number}")
        if block == 0:
            units[f"blocks.{i}.shortcut"] = Unit(f"{at}.downsample.0", f"{at}.downsample.1")
    return units


def _transformers() -> dict[str, Unit]:
    def unit(at: str) -> Unit:
        return Unit(f"resnet.{at}.convolution", f"resnet.{at}.normalization")

    units = {"stem": unit("embedder.embedder"), "classifier": Unit("classifier.1")}
    for i, (stage, block) in enumerate(staged(RESNET50_BLOCKS)):
        at = f"encoder.stages.{stage}.layers.{block}"
        for number, part in enumerate(PARTS):
            units[f"blocks.{i}.{part}"] = unit(f"{at}.layer.{number}")
        if block == 0:
            units[f"blocks.{i}.shortcut"] = unit(f"{at}.shortcut")
    return units


RESIDUAL = (
    Layout("CIFAR ResNet", "resnet20", _cifar(3), "cifar", 32),
    Layout("CIFAR ResNet", "resnet56", _cifar(9), "cifar", 32),
    Layout("torchvision", "resnet50", _torchvision(), "torchvision"),
    Layout("transformers", "resnet50", _transformers(), "timm"),
)
