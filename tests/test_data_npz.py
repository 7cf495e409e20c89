"""One file of arrays: both layouts give back what was written, and each fault has its line."""

import numpy as np
import pytest

from haqjax.data import load

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 5, 3), np.uint8)
LABELS = np.arange(30) % 3


def keras(**changes):
    arrays = {"x_train": IMAGES[:20], "y_train": LABELS[:20], "x_test": IMAGES[20:], "y_test": LABELS[20:]}
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def medmnist():
    arrays = {}
    for split, rows in (("train", slice(0, 18)), ("val", slice(18, 24)), ("test", slice(24, 30))):
        arrays |= {f"{split}_images": IMAGES[rows], f"{split}_labels": LABELS[rows, None].astype(np.uint8)}
    return arrays


def read(tmp_path, arrays, **options):
    np.savez(tmp_path / "set.npz", **arrays)
    return load(f"npz:{tmp_path / 'set.npz'}", preprocessing="none", **options)


def test_arrays_as_keras_names_them(tmp_path):
    data = read(tmp_path, keras())
    assert (data.classes, len(data.train), len(data.search), len(data.report)) == (3, 18, 2, 10)
    np.testing.assert_allclose(data.report.images, IMAGES[20:] / 255, atol=1e-7)
    assert data.report.labels.tolist() == LABELS[20:].tolist()
    assert data.report.labels.dtype == np.int32


def test_arrays_as_medmnist_names_them(tmp_path):
    data = read(tmp_path, medmnist())
    for split, rows in ((data.train, slice(0, 18)), (data.search, slice(18, 24)), (data.report, slice(24, 30))):
        np.testing.assert_allclose(split.images, IMAGES[rows] / 255, atol=1e-7)
        assert split.labels.tolist() == LABELS[rows].tolist()


def test_splits_can_be_named(tmp_path):
    data = read(tmp_path, medmnist(), splits=("train", "val"), search_images=6)
    assert (len(data.train), len(data.search)) == (12, 6)
    np.testing.assert_allclose(data.report.images, IMAGES[18:24] / 255, atol=1e-7)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_floating_point_images_run_from_0_to_1(tmp_path, kind):
    fractions = (IMAGES / 255).astype(kind)
    data = read(tmp_path, keras(x_train=fractions[:20], x_test=fractions[20:]))
    np.testing.assert_allclose(data.report.images, fractions[20:], atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 1)])
def test_grey_images_get_three_channels(tmp_path, shape):
    grey = IMAGES[..., :1].reshape(30, *shape)
    data = read(tmp_path, keras(x_train=grey[:20], x_test=grey[20:].astype(np.int64)))
    np.testing.assert_allclose(data.report.images, np.repeat(IMAGES[20:, ..., :1], 3, -1) / 255, atol=1e-7)


def test_sizes_can_be_chosen(tmp_path):
    assert read(tmp_path, keras(), image_size=8).train.images.shape == (18, 8, 8, 3)


def test_classes_can_be_told(tmp_path):
    assert read(tmp_path, keras(classes=np.array(7))).classes == 7


def test_a_file_that_does_not_fit_is_drawn_from(tmp_path):
    whole, data = read(tmp_path, keras()), read(tmp_path, keras(), memory=5 * 5 * 3 * 4 * 10)
    np.testing.assert_array_equal(data.train.take(slice(3, 5)).images, whole.train.images[3:5])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (keras(y_test=None), "has no split validation; it has: train"),
        ({"a": IMAGES}, "has no split train and no validation; it has: none"),
        (
            keras(y_test=LABELS[20:] + 1),
            "4 of 10 labels of y_test in '.*' are not in 0 .. 2; the first is 3, of image 0",
        ),
        (keras(y_train=LABELS[:20] - 1), "7 of 20 labels of y_train in '.*' are not in 0 .. 1; the first is -1"),
        (keras(classes=np.array(2)), "6 of 20 labels of y_train in '.*' are not in 0 .. 1; the first is 2, of image 2"),
        (keras(y_train=LABELS[:19]), r"y_train int64\[19\]: labels must be whole numbers, one an image"),
        (keras(y_train=LABELS[:20] / 1), r"y_train float64\[20\]: labels must be whole numbers, one an image"),
        (keras(x_train=IMAGES[:20, ..., :2]), r"x_train uint8\[20, 5, 5, 2\] .* images must be \[n, H, W\]"),
        (keras(x_train=IMAGES[:0], y_train=LABELS[:0]), r"x_train uint8\[0, 5, 5, 3\] .* n at least 1"),
        (keras(x_train=IMAGES[:20] / 1.0), r"floating-point images must lie in 0 \.\. 1, found 0.0 \.\. 255.0"),
        (keras(x_train=IMAGES[:20] * np.nan), r"floating-point images must lie in 0 \.\. 1, found nan"),
        (keras(x_train=IMAGES[:20] - 1.0), r"must lie in 0 \.\. 1, found -1.0"),
        (keras(x_test=IMAGES[20:].astype(int) + 1), r"whole-number images must lie in 0 \.\. 255, found 1 \.\. 256"),
        (keras(x_train=IMAGES[:20].astype(str)), "images must be numbers"),
        (keras(x_train=np.array([None] * 20)), "cannot read '.*set.npz' as arrays by numpy.savez: Object arrays"),
        (keras(x_test=IMAGES[20:, :4]), "have 5 x 5 pixels in one split and 4 x 5 in another"),
    ],
)
def test_faults_are_named(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as told:
        read(tmp_path, arrays)
    assert "\n" not in str(told.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="cannot read '.*none.npz' as arrays"):
        load(f"npz:{tmp_path / 'none.npz'}")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(ValueError, match="cannot read '.*bad.npz' as arrays"):
        load(f"npz:{tmp_path / 'bad.npz'}")
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(ValueError, match="cannot read '.*one.npy' .* it holds one array and no names"):
        load(f"npz:{tmp_path / 'one.npy'}")
