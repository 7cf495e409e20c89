"""Finished runs, opened again with their network."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import msgspec
from jaxtyping import Array, Int, PyTree
from rich.console import Console

from haqjax.evaluation import make_evaluator
from haqjax.models import AnyNetwork
from haqjax.policies.actions import from_rows, uniform
from haqjax.quantizers.rounding_offsets import to_nearest
from haqjax.reading import one_line
from haqjax.run.config.options import with_options
from haqjax.run.config.search import SearchConfig
from haqjax.run.evaluators import leave_activations, measure_accuracies
from haqjax.run.float_network import load_network
from haqjax.run.folder.documents import POLICY, open_folder, read_policy
from haqjax.run.folder.schema import PolicyFile
from haqjax.run.progress import show_phase
from haqjax.run.setup import PreparedSearch, find_ranges, prepare
from haqjax.training import Tuned, load_params, save_params
from haqjax.training.checkpoints import fingerprint
from haqjax.types import Ranges

FINETUNED, FINETUNING = "finetuned", "finetuning"  # folders within the run folder: the result, and its checkpoints


class FinishedRun(NamedTuple):
    """A finished run with its network, ready to be measured again."""

    config: SearchConfig
    prepared: PreparedSearch
    network: AnyNetwork  # trained, float
    ranges: Ranges
    policy: Int[Array, "L 2"]
    uniform: Int[Array, "L 2"]


def open_run(folder: str | Path, console: Console) -> FinishedRun:
    """Reads a run folder and makes its network and ranges again.

    Raises:
      ValueError: no finished run there.
    """
    config = with_options(open_folder(folder), {"out": None})
    found = read_policy(folder, config)
    config.check_files()
    prepared = prepare(config)
    network = load_network(prepared.network, prepared.data, config.network.weights, console)
    if found.weights != fingerprint(network.params):
        raise ValueError(
            f"the float network of {folder} is not at hand: what is cached or was trained now differs from what the "
            "run used; search again, with WEIGHTS for a network that is kept"
        )
    with show_phase(console, "calibrating"):
        ranges = find_ranges(config.quantizer, config.by_codebook, network, prepared.data)
    policy = match_policy(Path(folder) / POLICY, found, prepared.layers.names)
    even = leave_activations(config, uniform(found.uniform_bits, prepared.bounds))
    return FinishedRun(config, prepared, network, ranges, policy, even)


def match_policy(path: Path, found: PolicyFile, names: Sequence[str]) -> Int[Array, "L 2"]:
    """Takes the policy of a file for the network with these layers.

    Raises:
      ValueError: it is of another network.
    """
    try:
        return from_rows(msgspec.to_builtins(found.layers), names)
    except ValueError as error:
        raise ValueError(one_line(f"{path}: {error}")) from None


def measure_run(
    run: FinishedRun, params: PyTree, ranges: Ranges, policies: dict[str, Int[Array, "L 2"]]
) -> dict[str, float]:
    """Measures accuracies on the report split, with parameters and ranges of a run or its fine-tuning."""
    options = run.config.evaluation
    evaluator = make_evaluator(
        run.network.apply,
        params,
        run.prepared.data.report,
        ranges,
        batch_size=options.batch_size,
        policies_at_once=options.policies_at_once or 1,
    )
    return measure_accuracies(evaluator, policies)


def save_tuned(out: Path, tuned: Tuned) -> None:
    """Saves fine-tuned weights, ranges first: where the parameters are, both are."""
    save_params(out / "ranges", {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tuned.ranges))})
    save_params(out / "params", tuned.params)


def load_tuned(folder: Path, run: FinishedRun) -> Tuned:
    """Loads fine-tuned weights and ranges."""
    leaves, tree = jax.tree.flatten(to_nearest(run.ranges))
    found = load_params(folder / "ranges", {str(i): leaf for i, leaf in enumerate(leaves)})
    ranges = jax.tree.unflatten(tree, [found[str(i)] for i in range(len(leaves))])
    return Tuned(load_params(folder / "params", run.network.params), ranges)
