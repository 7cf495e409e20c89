"""A network of two layers and the images it is fine-tuned on: small enough for a process of its own."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from haqjax import calibrate
from haqjax.data import Split
from haqjax.sharding import make_mesh
from haqjax.training import Tuning, finetune_all

LAST = ("NHWC", "HWIO", "NHWC")
POLICY = np.array([[3, 8], [2, 4]])
TUNING = Tuning(
    epochs=6, batch_size=8, learning_rate=0.1, clip_rate=0.1, shift=1, flip=True, distill=0.5, temperature=2.0
)


def apply_train(params, x):
    """A convolution normalised by the batch, then a dense layer; the running mean follows the batch's."""
    y = jax.lax.conv_general_dilated(x, params["conv"], (2, 2), "SAME", dimension_numbers=LAST)
    mean = y.mean((0, 1, 2))
    moved = {**params, "norm": {"mean": 0.9 * params["norm"]["mean"] + 0.1 * mean}}
    return jax.nn.relu(y - mean[None, None, None]).reshape(len(x), -1) @ params["dense"], moved


def apply(params, x):
    """The same, normalised by the running mean."""
    y = jax.lax.conv_general_dilated(x, params["conv"], (2, 2), "SAME", dimension_numbers=LAST)
    return jax.nn.relu(y - params["norm"]["mean"][None, None, None]).reshape(len(x), -1) @ params["dense"]


def make_world(rounding="nearest"):
    """Parameters, ranges and labelled images."""
    first, second, third = jax.random.split(jax.random.key(0), 3)
    params = {
        "conv": jax.random.normal(first, (3, 3, 1, 4)) / 3,
        "norm": {"mean": jnp.zeros(4)},
        "dense": jax.random.normal(second, (36, 3)) / 6,
    }
    images = np.asarray(jax.random.normal(third, (40, 6, 6, 1)))
    labels = (images.mean((1, 2, 3)) * 20).round().clip(-1, 1).astype(np.int32) + 1
    return params, calibrate(apply, params, [images], rounding=rounding), Split(images, labels)


def tune(tuning=TUNING, **options):
    """Fine-tunes the small network."""
    params, ranges, data = make_world()
    return finetune_all(
        apply, params, POLICY, ranges, data, tuning, key=jax.random.key(1), apply_train=apply_train, **options
    )


def tune_slowly(folder):
    """Fine-tunes with a checkpoint each other step, so slowly that there is time to kill it."""
    tune(checkpoints=folder, every=2, on_epoch=lambda progress: time.sleep(1.5))


def tell_losses(devices):
    """Prints the loss of each step, in which so many devices share all images."""
    tuning = dataclasses.replace(TUNING, batch_size=40)
    tune(tuning, mesh=make_mesh(devices), on_epoch=lambda progress: print(f"{progress.loss:.9g}"))
