"""One file of arrays: both layouts give back what was written, and each fault has its line."""

import io
import os
import warnings
import zipfile

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


COUNTS = {10.7: "10.7", 1e30: r"1e\+30", "ten": r"<U3\[\]", (1, 2): r"int64\[2\]", -np.inf: "-inf", 0: "0", -3: "-3"}
COUNTS |= {65537: "65537", 2**64 - 1: str(2**64 - 1), 1j: r"complex128\[\]", (): r"float64\[0\]", np.nan: "nan"}
FAR = np.where(np.arange(20) == 7, 200, LABELS[:20])
HUGE = LABELS.astype(np.uint64) + 2**63


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (keras(classes=np.array(value)), f"classes is {said}, no whole number from 1 to")
        for value, said in COUNTS.items()
    ]
    + [(keras(classes=np.array(True)), r"classes is bool\[\], no whole number")]
    + [
        (keras(y_train=wrong), "labels must be whole numbers, one an image")
        for wrong in (LABELS[:20] + 0.5, LABELS[:20] > 0)
    ]
    + [(keras(y_train=LABELS[:20].astype(kind)), "labels must be whole numbers") for kind in (str, "m8[s]", complex)]
    + [
        (keras(y_train=FAR * 10**10), "y_train in '.*': a label of 2000000000000 .of image 7. among 20 images"),
        (keras(y_train=FAR), "a label of 200 .of image 7. among 20 images: mend it, or say `classes`"),
        (keras(y_train=HUGE[:20]), "a label of 9223372036854775810 "),
        (
            keras(classes=3, y_test=HUGE[20:]),
            "10 of 10 labels of y_test in .* are not in 0 .. 2; the first is 9223372036",
        ),
        (keras(x_train=IMAGES[:20].astype(complex)), "images must be numbers"),
        (keras(x_train=IMAGES[:20] > 9), "images must be numbers"),
        (keras(x_train=np.where(IMAGES[:20] > 250, -np.inf, 0)), "must lie in 0 .. 1, found -inf"),
        (keras(other=np.array([None])), "Object arrays are not read, as they can run any code: 'other'"),
        (keras(other=np.zeros(3, [("a", "O")])), "Object arrays are not read"),
        (keras(x_train=np.zeros((1,) * 32)), "images must be"),
        (keras(**{"x" * 5000: IMAGES}, y_test=None), "has no split"),
    ],
)
def test_labels_classes_and_images_that_are_none_are_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, arrays)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 500


def test_labels_of_few_of_many_classes_can_be_told(tmp_path):
    labels = LABELS[:20] * 400
    assert read(tmp_path, keras(y_train=labels, y_test=labels[:10], classes=np.array(1000.0))).classes == 1000


def archive(path, *members):
    """An archive of members as they are given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that comes twice
        for name, content in members:
            file.writestr(name, content)


def npy(shape, kind="<f4", data=b"", version=(1, 0)):
    out = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(out, {"descr": kind, "fortran_order": False, "shape": shape})
    return out.getvalue() + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((10**11,)), "the array 'x_train' has 128 bytes, and by its header 400000000128"),
        (npy((2**40, 2**40)), "by its header"),
        (npy((-1,)), "by its header|shape"),
        (npy((3,), data=bytes(8)), "has 136 bytes, and by its header 140"),
        (npy((2**25,), data=bytes(2**27)), "has 128 MiB, packed to [0-9]+ bytes: no images"),
        (npy((1,), data=bytes(4), version=(2, 0)), "of no version that numpy.savez writes"),
        (npy((1,), "|O", b"cos\nsystem\n(S'touch harm'\ntR."), "Object arrays are not read"),
        (b"\x93NUMPY\x01\x00\xb8\x0b" + b"(" * 3000, "as arrays by numpy.savez: "),
        (b"not an array", "as arrays by numpy.savez: "),
        (b"", "as arrays by numpy.savez: "),
    ],
)
def test_sizes_are_read_before_arrays(tmp_path, content, message):
    archive(tmp_path / "set.npz", ("x_train.npy", content), ("y_train.npy", npy((0,), "<i8")))
    with pytest.raises(ValueError, match=message) as caught:
        load(f"npz:{tmp_path / 'set.npz'}")
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 500


def test_an_archive_of_strange_members_is_refused(tmp_path):
    archive(tmp_path / "set.npz", ("x_train.npy", npy((0,))), ("x_train.npy", npy((0,))))
    with pytest.raises(ValueError, match="it has two arrays 'x_train'"):
        load(f"npz:{tmp_path / 'set.npz'}")
    archive(tmp_path / "set.npz", *((f"{n}.npy", npy((0,))) for n in range(1001)))
    with pytest.raises(ValueError, match="more than 1000 arrays"):
        load(f"npz:{tmp_path / 'set.npz'}")


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "set.npz")
    for path, message in (
        (tmp_path / "set.npz", "no regular file"),
        (tmp_path, "a folder"),
        ("/dev/zero", "no regular file"),
    ):
        with pytest.raises(ValueError, match=message):
            load(f"npz:{path}")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="cannot read '.*none.npz' as arrays"):
        load(f"npz:{tmp_path / 'none.npz'}")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(ValueError, match="cannot read '.*bad.npz' as arrays"):
        load(f"npz:{tmp_path / 'bad.npz'}")
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(ValueError, match="cannot read '.*one.npy' .* it holds one array and no names"):
        load(f"npz:{tmp_path / 'one.npy'}")
