"""Networks with published weights on real images: enough of them to tell that all is as it was in training."""

import jax
import numpy as np
import pytest
from PIL import Image

from haqjax.data import PREPROCESSING, load
from haqjax.data.preprocess import reshape, scale
from haqjax.evaluation import measure_accuracy
from haqjax.models import load_pretrained
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import with_hook

pytestmark = pytest.mark.optimised


def network_of(shared, name, data):
    return load_pretrained(str(shared / "data" / f"{name}_{data}.safetensors"), name)


@pytest.fixture(scope="module")
def cifar(shared):
    folder = str(shared / "data" / "tfds")
    return load("tfds:cifar10", data_dir=folder, splits=("train[:10]", "test"), report_images=400).report


@pytest.fixture(scope="module")
def photographs(shared):
    """Pixels and labels of one image of every eighth class that occurs in the validation images."""
    root = shared / "data" / "imagenet"
    classes = sorted(folder.name for folder in (root / "train").iterdir())
    files = [min(folder.iterdir()) for folder in sorted((root / "validation").iterdir())[::8]]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return images, np.array([classes.index(file.parent.name) for file in files])


@pytest.mark.parametrize(("name", "published"), [("resnet20", 91.73), ("resnet56", 93.39)])
def test_cifar_networks_are_as_accurate_as_published(shared, cifar, name, published):
    """All 10,000 test images in PyTorch, against 400 of them; chance is 10 %."""
    network, preprocessing = network_of(shared, name, "cifar10")
    assert preprocessing == "cifar"
    found = measure_accuracy(with_hook(network.apply, use_cpu_kernels), network.params, cifar)
    assert 100 * found.value == pytest.approx(published, abs=100 * 3 * found.error)


@pytest.mark.parametrize(("name", "published"), [("mobilenet_v1", 77.62), ("mobilenet_v2", 80.23)])
def test_mobilenets_are_as_accurate_as_published(shared, photographs, name, published):
    """1,300 validation images in PyTorch, against 59 of them; chance is 0.1 %."""
    network, preprocessing = network_of(shared, name, "imagenet")
    images, labels = photographs
    record = PREPROCESSING[preprocessing]
    x = np.stack([scale(reshape(image, record), record) for image in images])
    apply = jax.jit(with_hook(network.apply, use_cpu_kernels))
    found = np.mean(np.asarray(apply(network.params, x)).argmax(-1) == labels)
    error = (published * (100 - published) / len(labels)) ** 0.5
    assert 100 * found == pytest.approx(published, abs=3 * error)
