"""Preprocessing by its formulas: scales written out, crops read off images of coordinates, resizing as a loop."""

import dataclasses

import numpy as np
import pytest

from haqjax.data import PREPROCESSING, Preprocessing
from haqjax.data.preprocess import find_preprocessing, reshape, scale

IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FORMULAS = {
    "torchvision": lambda x: (x / 255 - IMAGENET[0]) / IMAGENET[1],
    "timm": lambda x: (x / 255 - IMAGENET[0]) / IMAGENET[1],
    "timm_mobilenet_v1": lambda x: (x / 255 - 0.5) / 0.5,
    "cifar": lambda x: (x / 255 - IMAGENET[0]) / IMAGENET[1],
    "mobilenet_v2_tf": lambda x: x / 127.5 - 1,
    "mobilenet_v2_tf_256": lambda x: x / 127.5 - 1,
    "mobilenet_v1_tf": lambda x: (x - 128) / 128,
    "mobilenet_v1_tf_256": lambda x: (x - 128) / 128,
    "none": lambda x: x / 255,
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_pixels_are_scaled_by_the_formula_of_the_family(name):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    scaled = scale(pixels, PREPROCESSING[name])
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, FORMULAS[name](pixels.astype(np.float64)), atol=1e-6)


def coordinates(height, width):
    """An image whose red is the row and whose green is the column."""
    rows, columns = np.indices((height, width), np.uint8)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1)


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(227, 227, 2, 2), (224, 224, 0, 0), (224, 255, 0, 16), (250, 225, 13, 0), (255, 230, 16, 3)],
)
def test_the_centre_is_cut_out_where_torchvision_cuts(height, width, top, left):
    image = coordinates(height, width)
    assert (top, left) == (int(round((height - 224) / 2.0)), int(round((width - 224) / 2.0)))  # CenterCrop
    cut = reshape(image, PREPROCESSING["mobilenet_v2_tf"])
    np.testing.assert_array_equal(cut, image[top : top + 224, left : left + 224])


@pytest.mark.parametrize(
    ("size", "resize", "crop", "expected"),
    [
        ((300, 400), 256, None, (256, 341)),  # 256 * 400 / 300 = 341.3
        ((400, 300), 256, None, (341, 256)),
        ((40, 30), 256, 224, (224, 224)),
        ((30, 20), None, None, (30, 20)),
        ((30, 20), None, 24, (24, 24)),  # enlarged: smaller than the crop
    ],
)
def test_sizes(size, resize, crop, expected):
    record = dataclasses.replace(PREPROCESSING["none"], resize=resize, crop=crop)
    assert reshape(np.zeros((*size, 3), np.uint8), record).shape == (*expected, 3)


def weights(old, new):
    """Computes the weight of each old pixel in each new one: a triangle as wide as two pixels of the coarser grid."""
    width = max(1.0, old / new)
    weight = np.empty((new, old))
    for i in range(new):
        for j in range(old):
            weight[i, j] = max(0.0, 1 - abs((i + 0.5) * old / new - (j + 0.5)) / width)
    return weight / weight.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [7, 23, 40])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_resizing_is_bilinear_and_does_not_alias(size, kind):
    image = np.random.default_rng(1).integers(0, 256, (23, 31, 3)).astype(kind)
    found = reshape(image, Preprocessing("mine", size, None, (0.0,) * 3, (1.0,) * 3))
    wide = 31 * size // 23
    expected = np.einsum("ij,kl,jlc->ikc", weights(23, size), weights(31, wide), image.astype(np.float64))
    assert (found.dtype, found.shape) == (kind, (size, wide, 3))
    np.testing.assert_allclose(found, expected, atol=1.01 if kind is np.uint8 else 1e-3)  # two roundings


def test_grey_images_get_three_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (30, 30, 1), np.uint8)
    found = reshape(grey, PREPROCESSING["mobilenet_v2_tf"].at(16))
    np.testing.assert_array_equal(found, np.repeat(grey[7:23, 7:23], 3, axis=-1))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 2), (4, 4, 4), (0, 4, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"is not \[H, W, 3\] or \[H, W, 1\]"):
        reshape(np.zeros(shape, np.uint8), PREPROCESSING["none"])


@pytest.mark.parametrize(
    ("name", "resize", "crop"), [("torchvision", 128, 112), ("mobilenet_v2_tf", None, 112), ("cifar", 112, 112)]
)
def test_another_size_crops_the_same_share(name, resize, crop):
    record = find_preprocessing(name, 112)
    assert (record.resize, record.crop, record.mean) == (resize, crop, PREPROCESSING[name].mean)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 300}, "'torchvision' crops 300 pixels from 256"),
        ({"resize": 0, "crop": None}, "'torchvision' has sizes 0, None"),
        ({"deviation": (1.0, 0.0, 1.0)}, r"deviation \(1.0, 0.0, 1.0\): all above 0"),
        ({"interpolation": "cubic"}, "'torchvision' interpolates by 'cubic': one of nearest, bilinear"),
    ],
)
def test_records_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PREPROCESSING["torchvision"], **changes)


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown preprocessing 'imagenet': one of torchvision, timm"):
        find_preprocessing("imagenet")
    with pytest.raises(ValueError, match="image_size is 0"):
        find_preprocessing("cifar", 0)
