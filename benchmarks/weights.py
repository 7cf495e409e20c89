"""How accurate are networks with published weights here, before and after batch norm is put back?

    python benchmarks/weights.py                      # or: --data FOLDER, with the files of its README

Top-1 accuracy in float32 on the 5,000 CIFAR-10 test images and the 650 ImageNet validation images there, beside what
independent PyTorch code measured on the whole of each. Where the file has batch norm folded into the convolutions, it
is restored from training images there, which must leave the logits as they are.
"""

import argparse
import functools
from pathlib import Path

import jax
import numpy as np
import records

from haqjax.data import load
from haqjax.evaluation import measure_accuracy
from haqjax.evaluation.batches import suggest_batch_size
from haqjax.models import load_pretrained, restore_batchnorm
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import with_hook

SHARED = Path(__file__).parents[2] / "shared" / "data"
# file: network, top-1 in PyTorch (%), on how many images of which these are a part; how far off ours may be (points)
FILES = {
    "resnet20_cifar10": ("resnet20", 91.73, 10_000, 0.3),
    "resnet56_cifar10": ("resnet56", 93.39, 10_000, 0.3),
    "mobilenet_v1_imagenet": ("mobilenet_v1", 77.62, 1_300, 2.0),
    "mobilenet_v2_imagenet": ("mobilenet_v2", 80.23, 1_300, 2.0),
}
CALIBRATION = 960  # images that batch norm is measured on


@functools.cache
def data_of(folder, name, preprocessing):
    """Loads the images of a network, as it was trained on them."""
    if name == "cifar10":
        return load("tfds:cifar10", data_dir=f"{folder}/tfds", preprocessing=preprocessing, search_images=10)
    return load(f"folder:{folder}/imagenet", preprocessing=preprocessing, search_images=10)


def bench(folder, file):
    """Measures one file."""
    name, published, of_images, allowed = FILES[file]
    network, preprocessing = load_pretrained(str(folder / f"{file}.safetensors"), name)
    data = data_of(folder, file.rpartition("_")[2], preprocessing)
    batch = suggest_batch_size(network.image_size**2)
    apply = with_hook(network.apply, use_cpu_kernels)
    found = measure_accuracy(apply, network.params, data.report, batch_size=batch)
    figures = {
        "file": file,
        "network": name,
        "preprocessing": preprocessing,
        "padding": network.padding,
        "images": len(data.report),
        "top1_percent": 100 * found.value,
        "standard_error": 100 * found.error,
        "pytorch_top1_percent": published,
        "pytorch_images": of_images,
        "allowed_difference": allowed,
        "reached": bool(abs(100 * found.value - published) <= allowed),
    }
    return figures | (restored(network, apply, data, batch) if file.endswith("imagenet") else {})


def restored(network, apply, data, batch):
    """Measures the same network after batch norm is re-estimated."""
    rows = range(min(CALIBRATION, len(data.train)))
    batches = (data.train.take(np.array(rows[at : at + batch])).images for at in range(0, len(rows), batch))
    params = restore_batchnorm(network, network.params, batches)
    logits = [np.asarray(jax.jit(apply)(p, data.report.images[:32])) for p in (network.params, params)]
    found = measure_accuracy(apply, params, data.report, batch_size=batch)
    return {
        "restored_from_images": len(rows),
        "restored_top1_percent": 100 * found.value,
        "restored_largest_logit_difference": np.abs(logits[0] - logits[1]).max(),
        "largest_logit": np.abs(logits[0]).max(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the weights and the images")
    folder = parser.parse_args().data
    if not folder.is_dir():
        raise SystemExit(f"there is no folder {folder}: name the one that has the weights and the images with --data")
    records.write("weights", [bench(folder, file) for file in FILES])
