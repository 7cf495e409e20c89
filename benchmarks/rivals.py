"""Other runtimes on networks of the same layers, for their time alone: PyTorch in floats, onnxruntime in int8.

Run as a script it says which of them are installed. Their weights are random, and int8 ranges are those of noise.
"""

import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

OPSET = 17  # of the ONNX files


def torch_network(name: str) -> Any:
    """Makes a network of 1,000 classes in PyTorch."""
    from torch import nn

    def block(c_in, c_out, kernel, stride=1, groups=1, activate=True, act=nn.ReLU6):
        parts = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]
        return nn.Sequential(*parts, *([act(True)] if activate else []))

    class Residual(nn.Module):
        """An inverted residual of MobileNetV2, or a bottleneck of ResNet."""

        def __init__(self, body, skip, end):
            super().__init__()
            self.body, self.skip, self.end = body, skip, end

        def forward(self, x):
            y = self.body(x)
            return self.end(y if self.skip is None else y + self.skip(x))

    def inverted(c_in, c_out, stride, expand):
        wide = c_in * expand
        widen = [block(c_in, wide, 1)] if expand > 1 else []
        body = nn.Sequential(*widen, block(wide, wide, 3, stride, wide), block(wide, c_out, 1, activate=False))
        return Residual(body, nn.Identity() if stride == 1 and c_in == c_out else None, nn.Identity())

    def bottleneck(c_in, c_out, stride):
        narrow = c_out // 4
        body = nn.Sequential(
            block(c_in, narrow, 1, act=nn.ReLU),
            block(narrow, narrow, 3, stride, act=nn.ReLU),
            block(narrow, c_out, 1, activate=False),
        )
        same = stride == 1 and c_in == c_out
        return Residual(body, nn.Identity() if same else block(c_in, c_out, 1, stride, activate=False), nn.ReLU(True))

    if name == "resnet50":
        parts, c_in = [block(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)], 64
        stages = [(256, 3, 1), (512, 4, 2), (1024, 6, 2), (2048, 3, 2)]
        make = lambda c_in, c_out, stride, _: bottleneck(c_in, c_out, stride)  # noqa: E731
        rows = [(0, c_out, count, stride) for c_out, count, stride in stages]
    else:
        parts, c_in = [block(3, 32, 3, 2)], 32
        rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2)]
        rows, make = [*rows, (6, 320, 1, 1)], inverted
    for expand, c_out, count, stride in rows:
        for number in range(count):
            parts.append(make(c_in, c_out, stride if number == 0 else 1, expand))
            c_in = c_out
    if name != "resnet50":
        parts, c_in = [*parts, block(320, 1280, 1)], 1280
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 1000)).eval()


def torch_float(name: str, size: int, count: int) -> dict[str, Callable[[], Any]]:
    """Makes a run of PyTorch in channels-last on one batch; none where it is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    network = torch_network(name).to(memory_format=torch.channels_last)
    x = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode():
            return network(x).numpy()

    return {"pytorch_float": run}


def onnx_int8(name: str, size: int, count: int) -> dict[str, Callable[[], Any]]:
    """Makes a run of onnxruntime's own int8 on one batch: weights by channel, unsigned activations."""
    try:
        import onnxruntime
        import torch
        from onnxruntime import quantization
    except ImportError:
        return {}
    images = np.random.default_rng(0).normal(size=(count, 3, size, size)).astype(np.float32)

    class Noise(quantization.CalibrationDataReader):
        """One batch of noise to set ranges by."""

        def __init__(self):
            self.batches = iter([{"x": images}])

        def get_next(self):
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        floats, ready, ints = (str(Path(folder) / file) for file in ("float.onnx", "ready.onnx", "int8.onnx"))
        names = {"input_names": ["x"], "output_names": ["y"], "opset_version": OPSET}
        torch.onnx.export(torch_network(name), (torch.from_numpy(images),), floats, dynamo=False, **names)
        quantization.shape_inference.quant_pre_process(floats, ready)
        unsigned, signed = quantization.QuantType.QUInt8, quantization.QuantType.QInt8
        types = {"activation_type": unsigned, "weight_type": signed, "per_channel": True}
        quantization.quantize_static(ready, ints, Noise(), **types)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        session = onnxruntime.InferenceSession(ints, options, providers=["CPUExecutionProvider"])
    return {"onnxruntime_int8": lambda: session.run(None, {"x": images})}


if __name__ == "__main__":
    there = {name: importlib.util.find_spec(name) is not None for name in ("torch", "onnx", "onnxruntime")}
    print(", ".join(f"{name}: {'installed' if found else 'not installed'}" for name, found in there.items()))
