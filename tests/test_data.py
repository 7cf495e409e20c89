"""The splits by counting, the enlarged digits by interpolation written out, the choice of splits."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from haqjax.data import Split, check_labels, load, stratified
from haqjax.data.cut import choose_splits
from haqjax.data.labels import check_range

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
    expected = everything * len(split) / everything.sum()
    assert (abs(np.bincount(split.labels) - expected) <= 1).all()


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


def test_stratified_copes_with_one_row_a_class():
    first, second = stratified(np.arange(1000), (900, 100), seed=0)
    assert sorted([*first, *second]) == list(range(1000))
    assert abs(second.mean() - 500) < 4 * 1000 / 12**0.5 / 100**0.5  # a fair draw, not the last 100 classes


def test_stratified_needs_enough_rows():
    with pytest.raises(ValueError, match=r"parts of \[3, 2\] rows from 4 rows"):
        stratified(np.zeros(4, int), (3, 2), seed=0)


def test_split_takes_rows():
    split = Split(np.arange(12, dtype=np.float32).reshape(3, 2, 2, 1), np.array([5, 6, 7], np.int32))
    taken = split.take(np.array([2, 0]))
    assert taken.labels.tolist() == [7, 5]
    assert taken.images[:, 0, 0, 0].tolist() == [8, 0]


@pytest.mark.parametrize("spec", ["mnist", "tfds:", "", "digits:32", "imagenet:mnist", "folder:", "npz"])
def test_unknown_data_set_lists_what_exists(spec):
    with pytest.raises(ValueError, match=f"'{spec}'.*'digits', 'tfds:NAME', 'folder:PATH' and 'npz:FILE'"):
        load(spec)


@pytest.mark.parametrize("option", ["preprocessing", "splits", "search_images", "report_images"])
def test_what_the_digits_cannot_do_is_refused(option):
    with pytest.raises(ValueError, match=f"'digits' is fixed and takes no {option}"):
        load("digits", **{option: 1})


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        (["test", "train"], None, ("train", "test")),
        (["val", "train"], None, ("train", "val")),
        (["val", "validation", "train"], None, ("train", "validation")),
        (["test", "train", "validation"], None, ("train", "validation", "test")),
        (["test", "train", "validation"], ["validation", "test"], ("validation", "test")),
    ],
)
def test_splits_are_chosen_by_name(there, asked, expected):
    assert choose_splits("mine", there, asked) == expected


@pytest.mark.parametrize(
    ("there", "asked", "message"),
    [
        (["test"], None, "mine has no split train; it has: test"),
        (["train", "more"], None, "mine has no split validation; it has: more, train"),
        ([], None, "mine has no split train and no validation; it has: none"),
        (["train", "test"], ["train", "dev"], "mine has no split dev; it has: test, train"),
        (["train", "test"], ["train"], r"splits are \['train'\]: name two or three"),
        (["train", "test"], ["train", "train"], r"splits are \['train', 'train'\]: name two or three"),
    ],
)
def test_missing_splits_are_named(there, asked, message):
    with pytest.raises(ValueError, match=message):
        choose_splits("mine", there, asked)


def test_labels_out_of_range_are_counted():
    check_range("mine", np.array([0, 2]), 3)
    with pytest.raises(ValueError, match=r"2 of 4 labels of mine are not in 0 \.\. 2; the first is 3, of image 1"):
        check_range("mine", np.array([0, 3, 2, -1]), 3)


GOOD = np.zeros((3, 2, 2, 1), np.float32)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD, np.array([0, 1]), "a split of 3 images has 2 labels"),
        (np.float32(1), np.array([0]), "a split of no images has 1 labels"),
        (GOOD, np.array([0, -1, -2]), "2 of 3 labels are not in 0 .. 2147483647; the first is -1, of image 1"),
        (GOOD, np.array([0, 2**31, 1]), "1 of 3 labels are not in 0 .. 2147483647; the first is 2147483648"),
        (GOOD, np.array([0, 2**63 + 5, 1], np.uint64), "the first is 9223372036854775813, of image 1"),
        (GOOD, np.array([0, 1.0, 2]), r"labels must be whole numbers, one an image, not float64\[3\]"),
        (GOOD, np.array([0, 1, np.nan]), "labels must be whole numbers"),
        (GOOD, np.array([True, False, True]), r"not bool\[3\]"),
        (GOOD, np.array(["a", "b", "c"]), "labels must be whole numbers"),
        (GOOD, np.eye(3, dtype=int), r"not int64\[3, 3\]"),
        (GOOD, [0, 1, 2], "one an image, not list"),
        (np.array([None, None, None]), np.arange(3), "images of a split must be numbers, not object"),
        (np.array(["a", "b", "c"]), np.arange(3), "images of a split must be numbers"),
    ],
)
def test_a_split_has_a_class_an_image(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)


def test_a_split_can_be_made_while_values_are_traced():
    assert jax.jit(lambda images, labels: Split(images, labels).labels.sum())(GOOD, np.array([0, 1, 2])) == 3


def test_labels_are_compared_with_the_classes_of_a_network():
    split = Split(GOOD, np.array([0, 9, 10]))
    check_labels(split, 11)
    with pytest.raises(ValueError, match=r"^1 of 3 labels are not in 0 .. 9; the first is 10, of image 2$"):
        check_labels(split, 10)


@pytest.mark.parametrize("size", [0, -1, 513, 100_000])
def test_digits_of_no_size_are_refused(size):
    with pytest.raises(ValueError, match=f"image_size is {size}: give 1 to 512 pixels for the digits"):
        load("digits", image_size=size)


@pytest.mark.parametrize("size", [0, 4097, 10**9])
def test_images_of_no_size_are_refused(size):
    with pytest.raises(ValueError, match=f"image_size is {size}: give 1 to 4096 pixels"):
        load("folder:none", image_size=size)
