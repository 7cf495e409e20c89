"""Sets of TFDS, written here record by record without TensorFlow and read back; a real one where present."""

import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from haqjax.data import load, prepare
from haqjax.data.tfds_reader import tfds

PARTS = ("train", "search", "report")
FEATURES = "tensorflow_datasets.core.features."


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_set(folder, splits, *, label="label", kind="uint8"):
    """A set of three classes, name and version as TFDS lays them out; `splits` maps names to (PNG, label) pairs."""
    place = folder / "tiny" / "1.0.0"
    place.mkdir(parents=True)
    told = [
        {"name": name, "shardLengths": [str(len(rows))], "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}"}
        for name, rows in splits.items()
    ]
    info = {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "splits": told}
    (place / "dataset_info.json").write_text(json.dumps(info))
    image = {"image": {"dtype": kind, "shape": {"dimensions": ["-1", "-1", "3"]}}}
    features = {
        "image": image | {"pythonClassName": FEATURES + "image_feature.Image"},
        label: {"classLabel": {"numClasses": "3"}, "pythonClassName": FEATURES + "class_label_feature.ClassLabel"},
    }
    everything = {"featuresDict": {"features": features}, "pythonClassName": FEATURES + "features_dict.FeaturesDict"}
    (place / "features.json").write_text(json.dumps(everything))
    for name, rows in splits.items():
        writer = ArrayRecordWriter(str(place / f"tiny-{name}.array_record"), "group_size:1")
        for data, number in rows:
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(data)
            example.features.feature[label].int64_list.value.append(number)
            writer.write(example.SerializeToString())
        writer.close()
    return folder


def rows(count, first=0, size=(4, 5)):
    return [(png(np.full((*size, 3), first + n, np.uint8)), n % 3) for n in range(count)]


def read(folder, **options):
    return load("tfds:tiny", data_dir=str(folder), **({"preprocessing": "none"} | options))


def numbers(split):
    return np.rint(split.images[:, 0, 0, 0] * 255).astype(int).tolist()


def test_every_image_is_in_one_split_under_its_label(tmp_path):
    data = read(write_set(tmp_path, {"train": rows(30), "test": rows(9, first=100)}))
    assert (data.name, data.classes, data.notes) == ("tfds:tiny", 3, ())
    assert [len(getattr(data, part)) for part in PARTS] == [27, 3, 9]
    assert sorted(numbers(data.train) + numbers(data.search)) == list(range(30))
    assert numbers(data.report) == list(range(100, 109))
    for part in PARTS:
        split = getattr(data, part)
        assert split.images.shape == (len(split), 4, 5, 3)
        assert [number % 3 for number in numbers(split)] == [(label + (part == "report")) % 3 for label in split.labels]


def test_a_validation_split_is_searched_by(tmp_path):
    write_set(tmp_path, {"train": rows(12), "validation": rows(6, first=50), "test": rows(9, first=100)})
    data = read(tmp_path)
    assert [numbers(getattr(data, part))[0] for part in PARTS] == [0, 50, 100]
    assert [len(getattr(data, part)) for part in PARTS] == [12, 6, 9]
    sliced = read(tmp_path, splits=("train[:6]", "train[6:]", "validation"))
    assert [numbers(getattr(sliced, part)) for part in PARTS] == [[*range(6)], [*range(6, 12)], [*range(50, 56)]]


def test_images_of_several_sizes_need_a_crop(tmp_path):
    write_set(tmp_path, {"train": rows(5) + rows(1, size=(6, 6)), "test": rows(3)})
    with pytest.raises(ValueError, match="1 of 9 .* image 5 of tiny train has 6 x 6 .* give an image size"):
        read(tmp_path)
    assert read(tmp_path, image_size=4).train.images.shape == (5, 4, 4, 3)


def test_labels_out_of_range_are_counted(tmp_path):
    write_set(tmp_path, {"train": rows(6), "test": [(data, -1) for data, _ in rows(3)]})
    with pytest.raises(
        ValueError, match=r"3 of 3 labels of tiny test are not in 0 \.\. 2; the first is -1, of image 0"
    ):
        read(tmp_path)


def test_corrupt_images_are_counted(tmp_path):
    damaged = rows(6)
    damaged[2] = (b"no image", 2)
    damaged[4] = (damaged[4][0][:-30], 1)
    write_set(tmp_path, {"train": damaged, "test": rows(3)})
    with pytest.raises(
        ValueError, match=r"2 of 9 images cannot be used; the first: image [24] of tiny train: "
    ) as told:
        read(tmp_path)
    assert "\n" not in str(told.value)


def test_missing_splits_are_named(tmp_path):
    write_set(tmp_path, {"train": rows(6)})
    with pytest.raises(ValueError, match="the data set 'tiny' has no split validation; it has: train"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"the data set 'tiny' has no split dev\[:3\]; it has: train"):
        read(tmp_path, splits=("train", "dev[:3]"))


@pytest.mark.parametrize("changes", [{"label": "digit"}, {"kind": "uint16"}])
def test_other_kinds_of_rows_are_refused(tmp_path, changes):
    write_set(tmp_path, {"train": rows(6), "test": rows(3)}, **changes)
    with pytest.raises(
        ValueError,
        match="'tiny' has no rows of an 'image' of 8 bits and a 'label'; it has: (digit, image|image, label)",
    ):
        read(tmp_path)


def test_a_damaged_set_is_one_line(tmp_path):
    write_set(tmp_path, {"train": rows(6), "test": rows(3)})
    (tmp_path / "tiny" / "1.0.0" / "tiny-test.array_record").unlink()
    with pytest.raises(ValueError, match=rf"cannot read the data set 'tiny' in data_dir '{tmp_path}': ") as told:
        read(tmp_path)
    assert "\n" not in str(told.value)


def test_missing_sets_say_how_to_prepare_them(tmp_path):
    with pytest.raises(
        ValueError, match=rf"no data set 'mnist' in data_dir '{tmp_path}': .*pip install 'haqjax\[prepare\]'"
    ):
        load("tfds:mnist", data_dir=str(tmp_path))
    (tmp_path / "mnist").mkdir()
    with pytest.raises(ValueError, match=r"cannot read the data set 'mnist' in data_dir") as told:
        load("tfds:mnist", data_dir=str(tmp_path))
    assert "\n" not in str(told.value)


def test_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="tensorflow-datasets, importlib_resources and pillow"):
        load("tfds:mnist", data_dir=str(tmp_path))


def test_preparing_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"preparing 'mnist' needs TensorFlow: pip install 'haqjax\[prepare\]'"):
        prepare("mnist")


def test_preparing_writes_what_is_read_here(monkeypatch, tmp_path):
    class Builder:
        data_dir = str(tmp_path / "mnist" / "3.0.1")

        def download_and_prepare(self):
            asked.append("prepared")

    asked = []
    library = types.ModuleType("tensorflow_datasets")
    library.builder = lambda name, **options: asked.append((name, options)) or Builder()
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", library)
    assert prepare("mnist", tmp_path) == Path(Builder.data_dir)
    assert asked == [("mnist", {"data_dir": tmp_path, "file_format": "array_record"}), "prepared"]


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
