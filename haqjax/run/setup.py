"""Setup of a search: network, data, machine and budget, then calibration."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from haqjax.data import Dataset, Source, Split, load
from haqjax.hardware import available_widths, cost_table, find_lifetimes, machine
from haqjax.models import AnyNetwork, OwnNetwork, is_own, load_own, load_pretrained, own_data
from haqjax.policies.bounds import find_outer
from haqjax.policies.budgets import budget
from haqjax.policies.feasibility import check_reachable
from haqjax.policies.rules import bounds_by_rules
from haqjax.quantizers import calibrate
from haqjax.quantizers.codebook import make_codebook
from haqjax.run.config.aim import FrontAim
from haqjax.run.config.options import with_options
from haqjax.run.config.search import (
    DataOptions,
    NetworkOptions,
    QuantizerOptions,
    SearchConfig,
)
from haqjax.run.float_network import empty_network
from haqjax.searchers.front import budget_fractions
from haqjax.tracing.layer_table import layers
from haqjax.types import (
    WIDTHS,
    Bounds,
    Budget,
    CostTable,
    LayerTable,
    Ranges,
)
from haqjax.widths import LINEAR

OWN = "own"  # data that a network of the user brings along
CALIBRATION_IMAGES = 256  # of the training split
CALIBRATION_BATCH = 64


class PreparedSearch(NamedTuple):
    """Parts of a search that are known before anything is trained."""

    machine: str
    data: Dataset
    network: AnyNetwork  # with the parameters of others, or with shapes in their place
    layers: LayerTable
    table: CostTable
    bounds: Bounds
    budget: Budget  # that every policy has to keep to
    budgets: tuple[Budget, ...] = ()  # of a front, the tightest first


def prepare(config: SearchConfig) -> PreparedSearch:
    """Reads the data, prices the network's layers, and makes sure that the budget can be met.

    Raises:
      ValueError: bad input; nothing has been trained or written.
    """
    accelerator, aim = machine(config.target.hw), config.aim
    network, data = open_network(config.network, config.data)
    rows = layers(network.apply, network.params, network.example, **network.reading)
    lifetimes = find_lifetimes(network.apply, network.params, network.example)
    table = cost_table(accelerator, rows, "codebook" if config.by_codebook else "plain", lifetimes)
    least = (2, WIDTHS if config.by_codebook else 2)  # where size is all that counts, activations stay at 8 bits
    available = available_widths(accelerator, rows)
    target, outer = config.target, find_outer(rows)
    bounds = bounds_by_rules(rows.names, target.layers, target.tie, low=least, available=available, outer=outer)
    if not config.by_codebook:
        _check_linear(bounds, rows.names)
    limits = budget(table, **aim.limits)
    budgets: tuple[Budget, ...] = ()
    if aim.resource is not None:
        fractions = budget_fractions(table, bounds, aim.resource)  # raises where the resource has no room
        if isinstance(aim, FrontAim):
            asked = aim.budgets or [{aim.resource: fraction} for fraction in fractions]
            each = (budget(table, **limit) for limit in asked)
            budgets = tuple(sorted(each, key=operator.attrgetter(aim.resource)))
    for one in (limits, *budgets):
        check_reachable(table, bounds, one, rows.names)
    return PreparedSearch(accelerator.name, data, network, rows, table, bounds, limits, budgets)


def _check_linear(bounds: Bounds, names: Sequence[str]) -> None:
    """Raises a ValueError where rules allow a layer 1 bit: linear levels need 2, and are no numbers at 1."""
    at = np.argwhere(np.asarray(bounds.low) < np.array(LINEAR)[None])
    if len(at):
        kind = ("weights", "activations")[at[0][1]]
        raise ValueError(
            f"the rules on layers allow {names[at[0][0]]} {kind} of 1 bit: linear levels need 2 (codebooks, with "
            "metric size, have weights of 1)"
        )


def open_network(network: NetworkOptions, data: DataOptions) -> tuple[AnyNetwork, Dataset]:
    """Opens the network and its data: weights of others say how their images are to be scaled."""
    if is_own(network.model):
        return _open_own(load_own(network.model), data)
    if data.data == OWN:
        raise ValueError(f"data {OWN!r} are those of a network of your own, such as model mynet:make")
    if not network.pretrained:
        loaded = _load(data, data.preprocessing)
        return empty_network(network.model, loaded), loaded
    opened, preprocessing = load_pretrained(str(network.weights), network.model)
    loaded = _load(data, data.preprocessing or (None if data.data == "digits" else preprocessing))
    if loaded.classes != opened.classes:
        raise ValueError(
            f"the weights {network.weights!r} tell {opened.classes} classes apart, {loaded.name} has {loaded.classes}: "
            "choose data that suit them"
        )
    return dataclasses.replace(opened, image_size=empty_network(network.model, loaded).image_size), loaded


def _open_own(network: OwnNetwork, data: DataOptions) -> tuple[OwnNetwork, Dataset]:
    """Opens a network of the user on its own data, or on others."""
    loaded = own_data(network) if data.data == OWN else _load(data, data.preprocessing)
    loaded = dataclasses.replace(
        loaded,
        search=loaded.search.take(slice(data.search_images)),
        report=loaded.report.take(slice(data.report_images)),
    )
    example = loaded.search.shaped(1) if network.example is None else network.example
    return dataclasses.replace(network, example=example, classes=loaded.classes), loaded


def use_own_data(config: SearchConfig) -> SearchConfig:
    """Lets a network of the user be evaluated on the data that it brings along, where no others are asked for."""
    usual = config.data.data == DataOptions().data
    if not is_own(config.network.model) or not usual or load_own(config.network.model).data is None:
        return config
    return with_options(config, {"data": OWN})


def _load(options: DataOptions, preprocessing: str | None) -> Dataset:
    return load(
        options.data,
        data_dir=options.data_dir,
        image_size=options.image_size,
        preprocessing=preprocessing,
        splits=options.splits or None,
        search_images=options.search_images,
        report_images=options.report_images,
        workers=options.workers,
    )


def find_ranges(options: QuantizerOptions, by_codebook: bool, network: AnyNetwork, data: Dataset) -> Ranges:
    """Calibrates on the first images of the training split; clusters the weights where they are only stored."""
    few = calibration_batches(data.train)
    ranges = calibrate(network.apply, network.params, few, options.calibration, rounding=options.rounding)
    if not by_codebook:
        return ranges
    return dataclasses.replace(ranges, codebook=make_codebook(network.apply, network.params, network.example))


def calibration_batches(split: Split | Source) -> list[PyTree]:
    """Takes the images that clip values are chosen by."""
    few = split.take(np.arange(min(CALIBRATION_IMAGES, len(split))))
    return [few.take(slice(at, at + CALIBRATION_BATCH)).images for at in range(0, len(few), CALIBRATION_BATCH)]
