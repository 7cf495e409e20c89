"""Batches from disk: every image once an epoch, and neither workers, hosts nor a stop in between change which."""

import itertools
import multiprocessing

import numpy as np
import pytest
from PIL import Image

from haqjax.data import PREPROCESSING, Source, Split, batches
from haqjax.data.image_folder import Files
from haqjax.data.source import make_source

COUNT = 23


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Small files whose colour and label are their number."""
    root = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        Image.new("RGB", (3, 2), (number,) * 3).save(root / f"{number:02}.png")
    paths = [str(path) for path in sorted(root.iterdir())]
    return make_source(Files(paths), np.arange(COUNT), PREPROCESSING["none"], workers=0)


def labels(drawn):
    drawn = list(drawn)
    for batch in drawn:
        assert batch.images.shape[1:] == (2, 3, 3)
        np.testing.assert_allclose(batch.images[:, 0, 0, 0] * 255, batch.labels, atol=1e-4)
    return [batch.labels.tolist() for batch in drawn]


def test_an_epoch_has_every_image_at_most_once(source):
    drawn = labels(batches(source.take(slice(None)), 5, epochs=40))
    epochs = [list(itertools.chain(*drawn[at : at + 4])) for at in range(0, 160, 4)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 40
    left_out = 40 - np.bincount(np.ravel(epochs), minlength=COUNT)  # 3 of 23 images an epoch, never the same
    assert left_out.max() <= 15  # 5.2 expected; 4.5 deviations


def test_seed_fixes_the_order(source):
    assert labels(batches(source, 5, seed=3)) == labels(batches(source, 5, seed=3))
    assert labels(batches(source, 5, seed=3)) != labels(batches(source, 5, seed=4))


def test_a_split_in_memory_is_drawn_from_alike(source):
    assert labels(batches(source.take(slice(None)), 4, epochs=2)) == labels(batches(source, 4, epochs=2))


def test_a_loop_that_was_interrupted_goes_on_alike(source):
    whole = labels(batches(source, 5, epochs=3))
    assert len(whole) == 12
    for start in range(12):
        assert labels(batches(source, 5, epochs=3, start=start)) == whole[start:]


def test_worker_processes_change_nothing_and_can_be_stopped(source):
    whole = labels(batches(source, 5, epochs=3))
    drawn = batches(source, 5, epochs=3, start=2, workers=2)
    assert labels(itertools.islice(drawn, 5)) == whole[2:7]
    assert len(multiprocessing.active_children()) == 2
    drawn.close()
    assert multiprocessing.active_children() == []


def test_a_finished_loop_has_no_batches_left(source):
    assert labels(batches(source, 5, start=4)) == []
    assert labels(batches(source.take(slice(None)), 5, start=4)) == []


def test_hosts_share_every_batch(source):
    whole = labels(batches(source, 6, epochs=2))
    pieces_of_hosts = [labels(batches(source, 6, epochs=2, host=(index, 3))) for index in range(3)]
    assert [list(itertools.chain(*pieces)) for pieces in zip(*pieces_of_hosts, strict=True)] == whole


def test_a_part_of_a_source_is_drawn_from_alone(source):
    assert sorted(itertools.chain(*labels(batches(source.part(np.arange(4, 10)), 2)))) == list(range(4, 10))


def test_a_corrupt_image_stops_the_loop_with_its_name(source, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    paths = [*source.records.paths[:7], str(tmp_path / "bad.png")]
    damaged = make_source(Files(paths), np.arange(8), PREPROCESSING["none"], workers=0)
    drawn = []
    with pytest.raises(ValueError, match=rf"1 of 2 images of batch \d cannot be used; the first: '{tmp_path}/bad.png'"):
        drawn.extend(batches(damaged, 2))
    assert len(drawn) < 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 24}, "batch_size must be between 1 and the 23 images, got 24"),
        ({"batch_size": 0}, "between 1 and the 23 images, got 0"),
        ({"epochs": 0}, "epochs 0 must be at least 1"),
        ({"seed": -1}, "seed -1 in 0"),
        ({"start": 5}, "start is 5, and 1 epochs have 4 batches"),
        ({"host": (0, 2)}, "host 0 of 2 cannot divide a batch of 5: choose a multiple of 2"),
        ({"host": (5, 5)}, "host 5 of 5"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_numbers_out_of_range_are_named_at_once(source, options, message):
    with pytest.raises(ValueError, match=message):
        batches(source, **({"batch_size": 5} | options))


def test_a_source_keeps_to_its_split_s_interface(source):
    assert isinstance(source, Source)
    whole = source.take(slice(None))
    assert isinstance(whole, Split)
    assert (len(source), source.image_shape) == (len(whole), whole.image_shape)
