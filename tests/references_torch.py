"""Logits of the networks in PyTorch, by the libraries whose weights are read; run it to store them again.

    python tests/references_torch.py        # needs torch, torchvision, timm and transformers

Every tensor is drawn with NumPy from a seed made of its name and shape, so the logits bind all names and all shapes: a
tensor under another name, in another form or left out gives other logits. `torch` and the libraries are imported where
they are needed; without them the stored logits remain.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

STORED = Path(__file__).parent / "data" / "pretrained.json"
SIZE = 40  # pixels: even and odd maps on the way, 40, 20, 10, 5, 3, 2
CLASSES = 10
TENSORFLOW_CLASSES = 1001

State = dict[str, np.ndarray]


def images() -> np.ndarray:
    """Two images, NHWC."""
    return np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3), np.float32)


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor of a state dict, of a size that keeps activations in range."""
    random = np.random.default_rng([zlib.crc32(name.encode()), *shape])
    normal = random.standard_normal(shape, np.float32)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith(".weight")):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) < 2:
        return 0.3 * normal
    fan_in = np.prod(shape[:-1] if name.endswith(".w") else shape[1:])
    return normal * np.float32((2 / fan_in) ** 0.5)


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A hash of all names and shapes, to tell whether two networks have the same tensors."""
    lines = sorted(
        f"{name} {tuple(shape)}" for name, shape in shapes.items() if not name.endswith("num_batches_tracked")
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _torchvision(name: str):
    import torchvision

    return torchvision.models.get_model(name, num_classes=CLASSES)


def _timm(name: str):
    import timm

    return timm.create_model(name, num_classes=CLASSES)


def _transformers(name: str, labels: int):
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=labels)
    return getattr(transformers, f"{name}ForImageClassification")(config)


def cifar_resnet(blocks: int):
    """github.com/akamaster/pytorch_resnet_cifar10: shortcuts of option A, zeros before and after the channels."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, c_in, c_out, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(c_out)
            self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(c_out)
            self.half = c_out // 4 if c_out > c_in else 0
            self.stride = stride

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            skip = x[:, :, :: self.stride, :: self.stride]
            return (y + nn.functional.pad(skip, (0, 0, 0, 0, self.half, self.half))).relu()

    def stage(c_in, c_out, stride):
        return nn.Sequential(*(Block(c_out if i else c_in, c_out, 1 if i else stride) for i in range(blocks)))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.layer1, self.layer2, self.layer3 = stage(16, 16, 1), stage(16, 32, 2), stage(32, 64, 2)
            self.linear = nn.Linear(64, CLASSES)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
            return self.linear(x.mean((2, 3)))

    return Network()


class Folded:
    """A MobileNet with folded batch norm and TensorFlow's padding, as a function of its tensors.

    Layers are (name, input channels, output channels, stride); what kind one is, its name tells.
    """

    def __init__(self, layers, features):
        self.layers = layers
        self.shapes = {"classifier.w": (features, CLASSES), "classifier.b": (CLASSES,)}
        for name, c_in, c_out, _ in layers:
            kernel = 3 if name.endswith(("stem", "dw")) else 1
            self.shapes[f"{name}.w"] = (kernel, kernel, 1 if name.endswith("dw") else c_in, c_out)
            self.shapes[f"{name}.b"] = (c_out,)

    def __call__(self, state, x):
        from torch.nn import functional

        kept = None
        for name, c_in, _, stride in self.layers:
            kept = x if name.endswith("expand") else kept
            weight = state[f"{name}.w"].permute(3, 2, 0, 1)
            missing = max((-(-x.shape[-1] // stride) - 1) * stride + weight.shape[-1] - x.shape[-1], 0)
            x = functional.pad(x, (missing // 2, missing - missing // 2) * 2)
            x = functional.conv2d(x, weight, state[f"{name}.b"], stride, groups=c_in // weight.shape[1])
            if not name.endswith("project"):
                x = x.clamp(0, 6)
            elif kept is not None and kept.shape == x.shape:
                x = x + kept
        return x.mean((2, 3)) @ state["classifier.w"] + state["classifier.b"]


def folded_v1() -> Folded:
    """MobileNet-V1 in the layout of ../shared/data."""
    layers, c_in = [("stem", 3, 32, 2)], 32
    for i, c_out in enumerate((64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024), 1):
        layers.append((f"block{i}.dw", c_in, c_in, 2 if i in (2, 4, 6, 12) else 1))
        layers.append((f"block{i}.pw", c_in, c_out, 1))
        c_in = c_out
    return Folded(layers, 1024)


def folded_v2() -> Folded:
    """MobileNetV2 in the layout of ../shared/data."""
    layers, c_in = [("stem", 3, 32, 2)], 32
    for i, c_out in enumerate((16, *(24,) * 2, *(32,) * 3, *(64,) * 4, *(96,) * 3, *(160,) * 3, 320)):
        wide = 6 * c_in if i else c_in
        layers += [(f"block{i}.expand", c_in, wide, 1)] if i else []
        layers.append((f"block{i}.dw", wide, wide, 2 if i in (1, 3, 6, 13) else 1))
        layers.append((f"block{i}.project", wide, c_out, 1))
        c_in = c_out
    return Folded([*layers, ("head", 320, 1280, 1)], 1280)


# (layout, network of haqjax.models): how to make it in PyTorch
REFERENCES: dict[tuple[str, str], Callable] = {
    ("CIFAR ResNet", "resnet20"): lambda: cifar_resnet(3),
    ("CIFAR ResNet", "resnet56"): lambda: cifar_resnet(9),
    ("torchvision", "resnet50"): lambda: _torchvision("resnet50"),
    ("transformers", "resnet50"): lambda: _transformers("ResNet", CLASSES),
    ("timm", "mobilenet_v1"): lambda: _timm("mobilenetv1_100"),
    ("transformers", "mobilenet_v1"): lambda: _transformers("MobileNetV1", TENSORFLOW_CLASSES),
    ("folded", "mobilenet_v1"): folded_v1,
    ("torchvision", "mobilenet_v2"): lambda: _torchvision("mobilenet_v2"),
    ("timm", "mobilenet_v2"): lambda: _timm("mobilenetv2_100"),
    ("transformers", "mobilenet_v2"): lambda: _transformers("MobileNetV2", TENSORFLOW_CLASSES),
    ("folded", "mobilenet_v2"): folded_v2,
}

# Other widths, and timm's ResNet-50: their tensors only
SHAPES: dict[str, Callable] = {
    "timm resnet50": lambda: _timm("resnet50"),
    "timm mobilenetv1_125": lambda: _timm("mobilenetv1_125"),
    "timm mobilenetv2_050": lambda: _timm("mobilenetv2_050"),
    "timm mobilenetv2_140": lambda: _timm("mobilenetv2_140"),
}


def shapes_of(network) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a reference."""
    if isinstance(network, Folded):
        return network.shapes
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def draw_state(shapes: Mapping[str, tuple[int, ...]]) -> State:
    """A random state dict with tensors of those names and shapes."""
    counts = {name: np.array(7) for name in shapes if name.endswith("num_batches_tracked")}
    return {name: draw(name, shape) for name, shape in shapes.items()} | counts


def run(network, state: State) -> np.ndarray:
    """Logits [2, 10] of a reference on the two images."""
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    x = torch.from_numpy(images()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        if isinstance(network, Folded):
            return network(tensors, x).numpy()
        network.load_state_dict(tensors)
        output = network.eval()(x)
    logits = getattr(output, "logits", output).numpy()
    return logits[:, logits.shape[1] == TENSORFLOW_CLASSES :][:, :CLASSES]


def main() -> None:
    import timm
    import torch
    import torchvision
    import transformers

    versions = {library.__name__: library.__version__ for library in (torch, torchvision, timm, transformers)}
    networks = {f"{model}, {layout}": make() for (layout, model), make in REFERENCES.items()}
    found = {
        "versions": versions,
        "logits": {name: run(network, draw_state(shapes_of(network))).tolist() for name, network in networks.items()},
        "digests": {name: digest(shapes_of(make())) for name, make in SHAPES.items()}
        | {name: digest(shapes_of(network)) for name, network in networks.items()},
    }
    STORED.parent.mkdir(exist_ok=True)
    STORED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
