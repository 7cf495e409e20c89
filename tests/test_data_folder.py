"""Folders of images: every file is found again under its label, and every fault is named and counted."""

import os
import socket
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from haqjax.data import Source, load

CLASSES = ("ant", "bee", "cat")
COUNTS = {"train": 10, "validation": 4}  # a class
PARTS = ("train", "search", "report")


def write_image(path, number, size=(6, 5)):
    """A picture in one colour that tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number, 255 - number, 7)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two splits of three classes; image numbers of class c start at 80 c in train, at 80 c + 40 in validation."""
    for label, name in reversed(list(enumerate(CLASSES))):
        for split, first in (("train", 0), ("validation", 40)):
            for number in range(COUNTS[split]):
                write_image(tmp_path / split / name / f"{number}.png", 80 * label + first + number)
    return tmp_path


def read(root, **options):
    return load(f"folder:{root}", **({"preprocessing": "none"} | options))


def numbers(split):
    """The numbers of the images of a split, after a check that each is all of one colour."""
    assert (split.images == split.images[:, :1, :1]).all()
    return np.rint(split.images[:, 0, 0, 0] * 255).astype(int).tolist()


def test_every_image_is_in_one_split_under_its_label(root):
    data = read(root)
    assert (data.name, data.classes, data.notes) == (f"folder:{root}", 3, ())
    assert [len(getattr(data, part)) for part in PARTS] == [27, 3, 12]
    assert data.train.images.shape == (27, 5, 6, 3)
    assert (data.train.images.dtype, data.train.labels.dtype) == (np.float32, np.int32)
    for part in PARTS:
        split = getattr(data, part)
        assert [number // 80 for number in numbers(split)] == split.labels.tolist()
    known = numbers(data.train) + numbers(data.search)
    assert sorted(known) == [80 * label + number for label in range(3) for number in range(10)]
    assert numbers(data.report) == [80 * label + 40 + number for label in range(3) for number in range(4)]
    assert sorted(data.search.labels) == [0, 1, 2]


def test_default_preprocessing_is_torchvision_s(root):
    data = load(f"folder:{root}", image_size=4)
    first = (np.array([40, 215, 7]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert data.report.images.shape == (12, 4, 4, 3)
    np.testing.assert_allclose(data.report.images[0, 0, 0], first, atol=1e-5)


def test_seed_fixes_the_splits(root):
    first, again, other = (numbers(read(root, seed=seed).search) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_worker_processes_change_nothing(root):
    alone, other = read(root), read(root, workers=1)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(alone, part).images, getattr(other, part).images)
        np.testing.assert_array_equal(getattr(alone, part).labels, getattr(other, part).labels)


def test_other_names_of_splits(root):
    (root / "validation").rename(root / "val")
    assert len(read(root).report) == 12
    (root / "val").rename(root / "test")
    assert len(read(root).report) == 12


def test_a_third_split_is_searched_by(root):
    for label, name in enumerate(CLASSES):
        write_image(root / "test" / name / "one.JPEG", 80 * label)
    data = read(root)
    assert [len(getattr(data, part)) for part in PARTS] == [30, 12, 3]
    assert [len(getattr(read(root, splits=("test", "train")), part)) for part in PARTS] == [2, 1, 30]


def test_validation_may_lack_classes(root):
    for path in (root / "validation" / "bee").iterdir():
        path.unlink()
    (root / "validation" / "bee").rmdir()
    assert np.bincount(read(root).report.labels).tolist() == [4, 0, 4]


def test_numbers_of_images_can_be_chosen(root):
    data = read(root, search_images=15, report_images=6)
    assert [np.bincount(getattr(data, part).labels).tolist() for part in PARTS] == [[5] * 3, [5] * 3, [2] * 3]
    assert data.notes == ()


IMAGE_BYTES = 5 * 6 * 3 * 4


def test_what_does_not_fit_into_memory_is_decoded_later(root):
    whole, data = read(root), read(root, memory=20 * IMAGE_BYTES)
    assert isinstance(data.train, Source)
    assert (len(data.train), data.train.image_shape) == (27, whole.train.image_shape)
    rows = np.array([3, 26, 0])
    np.testing.assert_array_equal(data.train.take(rows).images, whole.train.images[rows])
    np.testing.assert_array_equal(data.train.take(slice(2, 9)).labels, whole.train.labels[2:9])


def test_what_is_left_out_for_want_of_memory_is_noted(root):
    data = read(root, memory=2 * IMAGE_BYTES)
    assert (len(data.train), len(data.search), len(data.report)) == (28, 2, 2)
    search, report = data.notes
    assert "2 images instead of 3 are there to search" in search
    assert "2 images instead of 12 are there to report" in report
    assert report.endswith("give report_images to have more")


def test_other_files_are_noted(root):
    (root / "train" / "ant" / "notes.txt").write_text("")
    (root / "train" / "ant" / ".hidden").write_text("")
    (root / "train" / "labels.csv").write_text("")
    (root / "flat").mkdir()
    data = read(root)
    assert len(data.train) + len(data.search) == 30
    assert data.notes == (
        f"folders of '{root}' that are not read: flat",
        f"2 files of '{root}/train' are no images of a class and are left out: first '{root}/train/ant/notes.txt'",
    )


def test_images_may_lie_deeper(root):
    write_image(root / "train" / "bee" / "wild" / "10.png", 95)
    assert 95 in numbers(read(root).train) + numbers(read(root).search)


def test_what_is_no_file_is_noted_and_not_opened(root):
    place = root / "train" / "bee"
    os.mkfifo(place / "a.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place / "b.png"))
    os.symlink("/dev/zero", place / "c.png")
    (place / "d.png").mkdir()
    write_image(place / "d.png" / "inside.png", 1)
    os.symlink("..", place / "e")
    os.symlink(".", place / "f")
    os.symlink(root, place / "g.png")
    os.mkfifo(root / "train" / "h.png")
    data = read(root)
    assert len(data.train) + len(data.search) == 30
    (note,) = data.notes
    assert note == f"8 files of '{root}/train' are no images of a class and are left out: first '{place}/a.png'"


def test_a_class_that_leads_back_has_no_images(root):
    os.symlink("..", root / "train" / "dog")
    with pytest.raises(ValueError, match="1 of 4 classes of '.*' have no images: first 'dog'"):
        read(root)


def postscript(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n%%EndComments\n(%pipe%touch harm) (w) file\n")


def large(path):
    head = b"IHDR" + (20000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    chunk = (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)


SPOILS = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "a link to nothing": lambda path: (path.unlink(), os.symlink("nowhere", path)),
    "a link to itself": lambda path: (path.unlink(), os.symlink(path.name, path)),
    "PostScript": postscript,
    "large": large,
    "a little too large": lambda path: Image.new("1", (2**13, 2**13 + 1)).save(path),
}


@pytest.mark.parametrize("kind", SPOILS)
def test_an_image_that_is_none_is_named_in_one_line(root, kind):
    path = root / "train" / "cat" / "3.png"
    SPOILS[kind](path)
    with warnings.catch_warnings(), pytest.raises(ValueError) as caught:
        warnings.simplefilter("error")
        read(root)
    said = str(caught.value)
    assert said.startswith(f"1 of 42 images cannot be used; the first: '{path}'") or str(path) in said
    assert said.isprintable() and len(said) <= 500
    assert ("pixels, more than 67,108,864" in said) == (kind == "a little too large")


def test_missing_splits_and_folders_are_named(root):
    (root / "validation").rename(root / "kept")
    with pytest.raises(ValueError, match=rf"'{root}' has no split validation; it has: kept, train"):
        read(root)
    with pytest.raises(ValueError, match=f"there is no folder '{root}/nothing'"):
        read(root / "nothing")


def test_empty_classes_are_counted(root):
    for name in ("dog", "bat"):
        (root / "train" / name).mkdir()
    with pytest.raises(ValueError, match=rf"2 of 5 classes of '{root}/train' have no images: first 'bat'"):
        read(root)


def test_classes_that_are_only_in_validation_are_counted(root):
    for name in ("elk", "dog"):
        write_image(root / "validation" / name / "0.png", 0)
    with pytest.raises(
        ValueError, match=rf"2 classes of '{root}/validation' are none of the training split: first 'dog'"
    ):
        read(root)


def test_corrupt_images_are_counted(root):
    whole = (root / "validation" / "ant" / "0.png").read_bytes()
    (root / "validation" / "ant" / "3.png").write_bytes(whole[:-30])
    (root / "validation" / "cat" / "1.png").write_bytes(b"not an image")
    (root / "train" / "bee" / "2.png").write_bytes(b"")
    with pytest.raises(
        ValueError, match=rf"3 of 42 images cannot be used; the first: '{root}/train/bee/2.png'"
    ) as told:
        read(root, image_size=4)
    assert "\n" not in str(told.value)


def test_corrupt_images_come_first_or_alone(root):
    (root / "train" / "ant" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 42 images cannot be used; the first: .*train/ant/0.png'"):
        read(root)
    for path in (root / "validation").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="12 of 12 images cannot be used; the first: .*validation/ant/0.png'"):
        read(root)


def test_images_of_16_bits_are_not_clipped_in_silence(root):
    Image.fromarray(np.full((5, 6), 40000, np.uint16)).save(root / "train" / "ant" / "0.png")
    with pytest.raises(ValueError, match=r"1 of 42 .*ant/0.png': its pixels have more than 8 bits"):
        read(root, image_size=4)


def test_images_of_several_sizes_need_a_crop(root):
    write_image(root / "train" / "bee" / "2.png", 82, (6, 7))
    with pytest.raises(
        ValueError, match=r"1 of 42 .*bee/2.png' has 7 x 6 pixels where others have 5 x 6: give an image size"
    ):
        read(root)
    assert read(root, image_size=5).train.images.shape == (27, 5, 5, 3)


def test_splits_of_different_sizes_need_a_crop(root):
    for path in (root / "validation").rglob("*.png"):
        write_image(path, 0, (9, 9))
    with pytest.raises(ValueError, match="have 5 x 6 pixels in one split and 9 x 9 in another: give an image size"):
        read(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search_images": 30}, "there are 30 images to train on, too few to take 30"),
        ({"report_images": 13}, "report_images is 13, and there are 12"),
        ({"search_images": 0}, "search_images is 0: give at least 1"),
        ({"workers": -1}, "workers is -1: give at least 0"),
        ({"image_size": 0}, "image_size is 0"),
    ],
)
def test_numbers_out_of_range_are_named(root, options, message):
    with pytest.raises(ValueError, match=message):
        read(root, **options)


def test_imagenet_s_classes_are_the_sorted_folders(shared):
    root = shared / "data" / "imagenet"
    data = load(f"folder:{root}", preprocessing="mobilenet_v2_tf", memory=2**20, report_images=20, search_images=10)
    classes = sorted(path.name for path in (root / "train").iterdir())
    assert (data.classes, len(data.train), data.report.images.shape) == (1000, 990, (20, 224, 224, 3))
    assert sorted([*data.train.labels, *data.search.labels]) == list(range(1000))  # one training image a class
    path = data.train.records.paths[data.train.rows[7]]
    assert classes[data.train.labels[7]] in path
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float64)
    np.testing.assert_allclose(data.train.take(slice(7, 8)).images[0], pixels / 127.5 - 1, atol=1e-6)
