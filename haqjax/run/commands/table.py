"""The table command: what each layer of a network costs on a machine, as a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from rich.console import Console

from haqjax.hardware import cost_table, save_table
from haqjax.hardware.table_files import check_new
from haqjax.models import MODELS, is_own, load_own, outline, own_data
from haqjax.reading import quote
from haqjax.run.config.commands import TableConfig
from haqjax.run.terminal import say
from haqjax.tracing.layer_table import layers


def run_table(config: TableConfig, console: Console) -> Path:
    """Prices a network on a machine and writes the table: CSV with layer names, or HAQ's array of cycles or seconds.

    Raises:
      ValueError: bad input; nothing is written.
    """
    out = check_new(config.out)
    accelerator = config.machine
    apply, params, example, options = find_network(config.model, config.classes, config.image_size)
    table_of = layers(apply, params, example, **options)
    save_table(out, cost_table(accelerator, table_of), table_of, accelerator.batch)
    say(console, f"{len(table_of)} layers of {config.model} on {accelerator.name}: {out}")
    return out


def find_network(model: str, classes: int, image_size: int) -> tuple[Callable, PyTree, Any, dict[str, Any]]:
    """Finds a network of the zoo by name, or calls a `module:function` of the user's, without arguments.

    Returns:
      `(apply, params, example, options)`: params and example may be shapes only; options are for `haqjax.layers`.

    Raises:
      ValueError: no such network, or a function that returns something else.

    >>> apply, params, example, _ = find_network("resnet20", 10, 32)
    >>> example.shape
    (1, 32, 32, 3)
    """
    if not is_own(model):
        if model not in MODELS:
            raise ValueError(
                f"unknown model {quote(model)}: there are {', '.join(sorted(MODELS))}, or give module:function"
            )
        network = outline(model, classes=classes, image_size=image_size)
        return network.apply, network.params, network.example, {}
    own = load_own(model)
    bad = next((leaf for leaf in jax.tree.leaves(own.params) if not hasattr(leaf, "dtype")), None)
    if bad is not None:
        raise ValueError(f"{quote(model)} must return arrays as params, not {quote(bad)}")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), own.params)
    example = own_data(own).search.shaped(1) if own.example is None else own.example
    return own.apply, shapes, example, own.reading
