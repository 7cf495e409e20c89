"""The float network of a run: read from a folder, from the cache, or trained on first use."""

import dataclasses
import hashlib
import os
from pathlib import Path

import jax
from rich.console import Console

from haqjax.data import Dataset
from haqjax.files import check_writable
from haqjax.models import AnyNetwork, Network, OwnNetwork, build, outline
from haqjax.run.progress import show_progress
from haqjax.run.terminal import say
from haqjax.training import RECIPES, Progress, fit, load_params, save_params
from haqjax.training.checkpoints import fingerprint, shorten_disk_errors

VERSION = 1  # of the cache: raise it when training or a network changes


def cache_folder() -> Path:
    """Returns the folder of trained networks and compiled programs: `HAQJAX_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HAQJAX_CACHE") or Path(base) / "haqjax")


def empty_network(model: str, data: Dataset) -> Network:
    """Makes the network of a run with shapes for parameters: enough to read its layers."""
    _, height, width, _ = data.search.images.shape
    if height != width:
        raise ValueError(f"the images of {data.name} are {height} x {width} pixels: the networks here need square ones")
    return outline(model, classes=data.classes, image_size=height)


def load_network(network: AnyNetwork, data: Dataset, weights: str | None, console: Console) -> AnyNetwork:
    """Fills in trained parameters: its own, or of the folder `weights`, or from the cache, or else by training now."""
    own = isinstance(network, OwnNetwork)
    empty = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(network.params))
    if not empty and not (own and weights is not None):
        return network
    if weights is not None:
        return dataclasses.replace(network, params=load_params(weights, network.params))
    if isinstance(network, OwnNetwork):
        raise ValueError(f"{network.name} returns shapes as params: return arrays, or say which by WEIGHTS")
    folder = cache_folder() / "networks" / _cache_name(network, data)
    if folder.is_dir():
        try:
            return dataclasses.replace(network, params=load_params(folder, network.params))
        except ValueError as error:
            say(console, f"the cached network is not usable and is trained again ({error})")
    check_writable(folder.parent)
    trained = train_network(network, data, 0, console).params
    with shorten_disk_errors(folder, Exception):
        save_params(folder, trained)
    return dataclasses.replace(network, params=load_params(folder, network.params))  # as the next run will have them


def train_network(network: Network, data: Dataset, seed: int, console: Console) -> Network:
    """Trains from scratch by the network's recipe, with a progress bar."""
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    fresh = build(network.name, classes=network.classes, image_size=network.image_size, key=init_key)
    recipe = RECIPES[network.name]
    with show_progress(console, f"training {network.name} on {data.name}", recipe["epochs"]) as advance:

        def on_epoch(epoch: Progress) -> None:
            advance(epoch.epoch, f"training accuracy {100 * epoch.accuracy:.1f} %")

        params = fit(fresh, data.train, **recipe, key=fit_key, on_epoch=on_epoch)
    return dataclasses.replace(fresh, params=params)


def _cache_name(network: Network, data: Dataset) -> str:
    shape, sample = (len(data.train), *data.search.images.shape[1:]), fingerprint(data.search.images)
    text = f"{VERSION} {data.name} {shape} {sample} {data.classes} {RECIPES[network.name]}"
    name = data.name.replace(":", "-").replace("/", "-")
    return f"{network.name}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
