"""A network of four layers in the place of the zoo's, so that a whole run takes seconds."""

import jax
import jax.numpy as jnp
import numpy as np

import haqjax.run.commands.search
import haqjax.run.finished
import haqjax.run.setup
from haqjax.data import Dataset, Split
from haqjax.models import Network

IMAGES, CLASSES, SIZE = 120, 4, 6
LAST = ("NHWC", "HWIO", "NHWC")


def apply(params, x):
    """Two convolutions and two dense layers."""
    y = x
    for name in ("first", "second"):
        y = jax.nn.relu(jax.lax.conv_general_dilated(y, params[name], (2, 2), "SAME", dimension_numbers=LAST))
    return jax.nn.relu(y.reshape(len(x), -1) @ params["third"]) @ params["fourth"]


def apply_train(params, x):
    """The same: there is nothing to normalise."""
    return apply(params, x), params


def make_network():
    """Random weights: the labels below are its own answers, with a tenth of them changed."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"first": (3, 3, 3, 6), "second": (3, 3, 6, 8), "third": (32, 16), "fourth": (16, CLASSES)}
    params = {
        name: jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return Network("tiny", CLASSES, SIZE, 1.0, apply, apply_train, params)


def make_data():
    """Noise, in three parts."""
    random, network = np.random.default_rng(0), make_network()
    images = random.normal(size=(3 * IMAGES, SIZE, SIZE, 3)).astype(np.float32)
    labels = np.asarray(jnp.argmax(apply(network.params, images), -1)).astype(np.int32)
    wrong = random.random(len(labels)) < 0.1
    labels = np.where(wrong, (labels + 1) % CLASSES, labels).astype(np.int32)
    parts = [Split(images[at : at + IMAGES], labels[at : at + IMAGES]) for at in range(0, 3 * IMAGES, IMAGES)]
    return Dataset("tiny", CLASSES, *parts)


def install(patch):
    """Puts network and data in the place of what a configuration names."""
    patch.setattr(haqjax.run.setup, "open_network", lambda *options: (make_network(), make_data()))
    patch.setattr(haqjax.run.commands.search, "load_network", lambda network, *rest: network)
    patch.setattr(haqjax.run.finished, "load_network", lambda network, *rest: network)
