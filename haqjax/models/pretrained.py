"""Pretrained networks: weights that others trained, from a file or a hub."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haqjax.models.layouts import LAYOUTS, Layout, Source, Tensor
from haqjax.models.network import MODELS, Network, outline
from haqjax.models.sources import find_file, is_timm, read_tensors
from haqjax.reading import one_line, quote
from haqjax.tracing.parameters import check_tensors

LONGEST = 480  # characters of a message
SHOWN = 3  # tensors that a message names
PARALLEL = "module."  # prefix of every name by PyTorch's DataParallel

Tensors = dict[str, np.ndarray]


class Pretrained(NamedTuple):
    """A network with the weights of a file, and the images it was trained on, as `haqjax.data.PREPROCESSING` has it."""

    network: Network
    preprocessing: str


def load_pretrained(
    source: str, name: str, *, classes: int | None = None, image_size: int | None = None, width: float = 1.0
) -> Pretrained:
    """Makes a network with weights from a file or a hub, every tensor of which is used exactly once.

    Args:
      source: path of a `.safetensors` file; `timm:NAME`, such as "timm:mobilenetv1_100.ra4_e3600_r224_in1k"; or
        `hf:OWNER/REPOSITORY`, with `/FILE` after it where that is not model.safetensors.
      name: one of `MODELS`. The naming that the file follows is found out.
      classes: number of logits; None takes the file's.
      image_size: height and width of the images, in pixels; None is 32 for the CIFAR networks and 224 for the others.
      width: multiplier of the channels of every layer.

    Returns:
      The network, with the padding and the epsilon that its weights were trained under, and its preprocessing.

    Raises:
      ValueError: the source cannot be read, or its tensors are not the network's; the message names tensors with their
        shapes.

    >>> import tempfile
    >>> from safetensors.numpy import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"linear.bias": np.zeros(10, np.float32)}, f"{folder}/a.safetensors")
    ...     load_pretrained(f"{folder}/a.safetensors", "resnet20")
    Traceback (most recent call last):
    ...
    ValueError: '...' does not fit resnet20 (CIFAR ResNet names): it lacks 'bn1.bias' (16,), ...
    """
    if name not in MODELS:
        raise ValueError(f"unknown network {name!r}; there are {', '.join(sorted(MODELS))}")
    tensors = _read(source)
    layout = _choose([layout for layout in LAYOUTS if layout.model == name], source, tensors)
    sources = layout.sources()
    network = outline(
        name,
        classes=_count_classes(sources, source, tensors) if classes is None else classes,
        image_size=layout.image_size if image_size is None else image_size,
        width=width,
        padding=layout.padding,
        epsilon=layout.epsilon,
    )
    paths, tree = jax.tree_util.tree_flatten_with_path(network.params)
    shapes = {".".join(str(entry.key) for entry in path): leaf.shape for path, leaf in paths}
    _check(source, layout, shapes, tensors)
    leaves = [_leaf(sources[path], shape, tensors) for path, shape in shapes.items()]
    _check_values(source, sources, dict(zip(shapes, leaves, strict=True)))
    preprocessing = "timm" if is_timm(source) and layout.preprocessing == "torchvision" else layout.preprocessing
    return Pretrained(dataclasses.replace(network, params=jax.tree.unflatten(tree, leaves)), preprocessing)


def _read(source: str) -> Tensors:
    tensors = read_tensors(find_file(source))
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): array for name, array in tensors.items()}
    return tensors


def _choose(layouts: Sequence[Layout], source: str, tensors: Tensors) -> Layout:
    """Chooses the layout that has most names in common with a file."""
    common = [len(_names(layout) & tensors.keys()) for layout in layouts]
    if not max(common):
        raise ValueError(
            f"{quote(source)} names its tensors as no {layouts[0].model} does that is known here "
            f"({', '.join(layout.name for layout in layouts)}): they are {_some(sorted(map(quote, tensors)))}"
        )
    return layouts[int(np.argmax(common))]


def _names(layout: Layout) -> set[str]:
    return {source.name for source in layout.sources().values() if isinstance(source, Tensor)}


def _count_classes(sources: dict[str, Source], source: str, tensors: Tensors) -> int:
    parts = [part for part in (sources["classifier.bias"], sources["classifier.kernel"]) if isinstance(part, Tensor)]
    for part in parts:
        if part.name in tensors and tensors[part.name].ndim:
            return part.take(tensors[part.name]).shape[-1]
    raise ValueError(
        f"{quote(source)} has no classifier ({_some([repr(part.name) for part in parts])}): a backbone alone"
    )


def _check(source: str, layout: Layout, shapes: dict[str, tuple[int, ...]], tensors: Tensors) -> None:
    ours = layout.sources().items()
    wanted = {part.name: (part, shapes[path]) for path, part in ours if isinstance(part, Tensor)}
    lacking, other, extra = [], [], []
    for name, (part, shape) in sorted(wanted.items()):
        if name not in tensors:
            lacking.append(f"{name!r} {part.shape(shape)}")
        elif part.take(tensors[name]).shape != shape:
            other.append(f"{quote(name)} {_shape(tensors[name])}, expected {part.shape(shape)}")
        elif not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            other.append(f"{quote(name)} of {tensors[name].dtype}, expected floating-point numbers")
    for name in sorted(tensors.keys() - wanted.keys()):
        if not layout.is_ignored(name):
            extra.append(f"{quote(name)} {_shape(tensors[name])}")
    faults = {"it lacks": lacking, "it has": other, "it has no place for": extra}
    complaints = "; ".join(f"{verb} {_some(names)}" for verb, names in faults.items() if names)
    if complaints:
        fits = [other.model for other in LAYOUTS if _fits(other, tensors) and other.model != layout.model]
        hint = f"; its names are those of {fits[0]}" if fits else ""
        line = f"{quote(source)} does not fit {layout.model} ({layout.name} names): {complaints}{hint}"
        raise ValueError(one_line(line, LONGEST))


def _check_values(source: str, sources: dict[str, Source], leaves: dict[str, jax.Array]) -> None:
    """Checks the values under the names of the file."""
    parts = ((path, sources[path]) for path in leaves)
    names = {path: part.name for path, part in parts if isinstance(part, Tensor)}
    variances = {name for path, name in names.items() if path.endswith(".var")}
    check_tensors(quote(source), {name: leaves[path] for path, name in names.items()}, variances)


def _fits(layout: Layout, tensors: Tensors) -> bool:
    return _names(layout) == {name for name in tensors if not layout.is_ignored(name)}


def _some(items: Sequence[str]) -> str:
    rest = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + rest


def _shape(tensor: np.ndarray) -> str:
    return one_line(tensor.shape, 60)


def _leaf(source: Source, shape: tuple[int, ...], tensors: Tensors) -> jax.Array:
    if isinstance(source, Tensor):
        with np.errstate(over="ignore"):  # becomes infinite, and is refused
            return jnp.asarray(source.take(tensors[source.name]), jnp.float32)
    return jnp.full(shape, source, jnp.float32)
