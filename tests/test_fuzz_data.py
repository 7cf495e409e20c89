"""Damaged files of data and of weights: each is read, or refused in one line, and none hangs."""

import numpy as np
import pytest
from safetensors.numpy import save

from haqjax.data import load
from haqjax.models import load_pretrained, outline
from haqjax.models.pretrained import LAYOUTS, Tensor
from mutations import NPZ_WAYS, SAFETENSORS_WAYS, damage, read_or_refuse

TIMES, SEED = 300, 14


@pytest.fixture
def npz(tmp_path):
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (12, 3, 3, 1), np.uint8), np.arange(12) % 3
    path = tmp_path / "set.npz"
    np.savez(path, x_train=images[:8], y_train=labels[:8], x_test=images[8:] / 255, y_test=labels[8:], classes=3)
    return path


@pytest.fixture
def weights(tmp_path):
    """A small ResNet-20, under the names that others give its tensors."""
    layout = next(layout for layout in LAYOUTS if layout.model == "resnet20")
    import jax

    params = outline("resnet20", classes=2, width=0.1).params
    shapes = {
        ".".join(str(entry.key) for entry in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    parts = {part.name: part.shape(shapes[at]) for at, part in layout.sources().items() if isinstance(part, Tensor)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({name: np.full(shape, 0.5, np.float32) for name, shape in parts.items()}))
    return path


def test_a_damaged_set_is_read_or_refused(npz):
    whole, read = npz.read_bytes(), 0
    for damaged in damage(whole, TIMES, SEED, NPZ_WAYS):
        npz.write_bytes(damaged)
        data = read_or_refuse(lambda: load(f"npz:{npz}", preprocessing="none"), damaged)
        if data is not None:
            read += 1
            for split in (data.train, data.search, data.report):
                assert (
                    np.isfinite(split.images).all()
                    and split.labels.min() >= 0
                    and split.labels.max() < data.classes <= 80
                )
    assert 0 < read < TIMES


def test_damaged_weights_are_read_or_refused(weights):
    import jax

    whole, read = weights.read_bytes(), 0
    for damaged in damage(whole, TIMES, SEED, SAFETENSORS_WAYS):
        weights.write_bytes(damaged)
        found = read_or_refuse(lambda: load_pretrained(str(weights), "resnet20", width=0.1), damaged)
        if found is not None:
            read += 1
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.network.params))
    assert 0 < read < TIMES
