"""The splits by counting, the enlarged digits by interpolation written out, a real set of TFDS where present."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from haqjax.data import Split, load, stratified
from haqjax.data.tfds import _read, normalise, tfds

PARTS = ("train", "search", "report")


@pytest.fixture(scope="module")
def small():
    return load("digits", image_size=8)


def test_digits_have_the_documented_shape():
    data = load("digits")
    assert (data.name, data.classes) == ("digits", 10)
    assert [len(getattr(data, part)) for part in PARTS] == [1077, 360, 360]
    for part in PARTS:
        split = getattr(data, part)
        assert split.images.shape == (len(split), 32, 32, 3)
        assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int32)
        assert split.images.min() == 0
        assert split.images.max() <= 1
        assert (split.images[..., :1] == split.images).all()


def test_splits_together_are_the_original_scans_once_each(small):
    scans, labels = load_digits(return_X_y=True)
    original = sorted((scan / 16).tolist() + [label] for scan, label in zip(scans, labels, strict=True))
    images = np.concatenate([getattr(small, part).images[..., 0].reshape(-1, 64) for part in PARTS])
    found = np.concatenate([getattr(small, part).labels for part in PARTS])
    assert sorted(image.tolist() + [label] for image, label in zip(images, found, strict=True)) == original


@pytest.mark.parametrize("part", PARTS)
def test_every_class_has_its_share_of_every_split(small, part):
    split, everything = getattr(small, part), np.bincount(load_digits(return_X_y=True)[1])
    share = everything * len(split) / everything.sum()
    assert (abs(np.bincount(split.labels) - share) <= 1).all()


def test_seed_fixes_the_splits(small):
    again, other = load("digits", image_size=8), load("digits", image_size=8, seed=1)
    assert np.array_equal(again.search.images, small.search.images)
    assert np.array_equal(again.report.labels, small.report.labels)
    assert not np.array_equal(other.search.images, small.search.images)


def test_digits_are_enlarged_by_bilinear_interpolation(small):
    image, size = small.report.images[0, :, :, 0].astype(np.float64), 32
    expected = np.empty((size, size))
    at = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)  # pixel centres; the border is continued
    for i, y in enumerate(at):
        for j, x in enumerate(at):
            top, left = min(int(y), 6), min(int(x), 6)
            dy, dx = y - top, x - left
            expected[i, j] = (
                (1 - dy) * (1 - dx) * image[top, left]
                + (1 - dy) * dx * image[top, left + 1]
                + dy * (1 - dx) * image[top + 1, left]
                + dy * dx * image[top + 1, left + 1]
            )
    np.testing.assert_allclose(load("digits").report.images[0, :, :, 0], expected, atol=1e-6)


def test_stratified_parts_are_disjoint_and_fair():
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    first, second, third = stratified(labels, (50, 30, 10), seed=3)
    assert len(np.unique(np.concatenate([first, second, third]))) == 90
    for part, size in ((first, 50), (second, 30), (third, 10)):
        assert len(part) == size
        assert (abs(np.bincount(labels[part], minlength=3) - np.array([0.7, 0.2, 0.1]) * size) <= 1).all()


def test_stratified_parts_are_in_random_order():
    labels = np.repeat([0, 1], 50)
    (part,) = stratified(labels, (100,), seed=0)
    assert 30 < np.abs(np.diff(labels[part])).sum() < 70  # changes of class: 1 if sorted, 99 if alternating


def test_stratified_needs_enough_rows():
    with pytest.raises(ValueError, match=r"parts of \[3, 2\] rows from 4 rows"):
        stratified(np.zeros(4, int), (3, 2), seed=0)


def test_split_takes_rows():
    split = Split(np.arange(12, dtype=np.float32).reshape(3, 2, 2, 1), np.array([5, 6, 7], np.int32))
    taken = split.take(np.array([2, 0]))
    assert taken.labels.tolist() == [7, 5]
    assert taken.images[:, 0, 0, 0].tolist() == [8, 0]


@pytest.mark.parametrize("spec", ["mnist", "tfds:", "", "digits:32", "imagenet:mnist"])
def test_unknown_data_set_lists_what_exists(spec):
    with pytest.raises(ValueError, match=f"'{spec}'.*'digits' and 'tfds:NAME'"):
        load(spec)


def test_missing_tfds_set_is_named_with_its_folder(tmp_path):
    with pytest.raises(ValueError, match=rf"no data set 'mnist' in data_dir '{tmp_path}'"):
        load("tfds:mnist", data_dir=str(tmp_path))


def test_unreadable_tfds_set_is_one_line(tmp_path):
    (tmp_path / "mnist").mkdir()
    with pytest.raises(ValueError, match=r"cannot read the data set 'mnist' in data_dir") as caught:
        load("tfds:mnist", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "'x' has no rows of 'image' and 'label'"),
        ([{"text": "", "label": 0}], "'x' has no rows of 'image' and 'label'"),
        (
            [{"image": np.zeros((n, 4, 3), np.uint8), "label": 0} for n in (4, 5)],
            "images of the data set 'x' have 2 sizes",
        ),
    ],
)
def test_unsuitable_tfds_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        _read("x", rows)


def test_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="tensorflow-datasets, importlib_resources and pillow"):
        load("tfds:mnist", data_dir=str(tmp_path))


def test_normalised_channels_have_imagenet_s_mean_and_deviation():
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    scaled = normalise(pixels)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled * deviation + mean, pixels / 255, atol=1e-6)


def test_grey_images_get_three_channels():
    grey = np.array([[[[0]], [[128]]]], np.uint8)
    assert np.array_equal(normalise(grey), normalise(np.repeat(grey, 3, axis=-1)))


def test_cifar10_is_read_without_tensorflow(shared):
    data = tfds("cifar10", data_dir=str(shared / "data" / "tfds"), splits=("train[:800]", "test[:300]"))
    assert "tensorflow" not in sys.modules
    assert (data.name, data.classes) == ("tfds:cifar10", 10)
    assert [len(getattr(data, part)) for part in PARTS] == [720, 80, 300]
    assert data.report.images.shape == (300, 32, 32, 3)
    known = np.bincount(data.train.labels) + np.bincount(data.search.labels)
    assert (abs(np.bincount(data.search.labels) - 0.1 * known) <= 1).all()
    pixels = data.search.images * np.array([0.229, 0.224, 0.225]) + np.array([0.485, 0.456, 0.406])
    assert abs(pixels * 255 - np.round(pixels * 255)).max() < 1e-3
    assert (pixels.min() > -1e-6) and (pixels.max() < 1 + 1e-6)
