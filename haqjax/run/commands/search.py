"""The search command: from a configuration to a run folder."""

import contextlib
import dataclasses
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from rich.console import Console

from haqjax.evaluation import estimate_gauss_newton_sensitivity
from haqjax.files import check_free
from haqjax.models import AnyNetwork
from haqjax.reading import quote
from haqjax.run.answers import answers_to
from haqjax.run.answers.common import Measured, SearchRun, count_not_finite
from haqjax.run.config.aim import usual_front
from haqjax.run.config.commands import free_folder
from haqjax.run.config.options import to_options, with_options
from haqjax.run.config.search import SearchConfig
from haqjax.run.distributed import from_first, join, make_speaker
from haqjax.run.evaluators import (
    choose_batch_sizes,
    leave_activations,
    make_search_evaluator,
    make_split_evaluator,
    measure,
    measure_accuracies,
)
from haqjax.run.float_network import load_network
from haqjax.run.folder.documents import open_folder
from haqjax.run.progress import show_phase
from haqjax.run.resumable import hold_search, make_run_folder, run_resumable
from haqjax.run.setup import PreparedSearch, find_ranges, prepare, use_own_data
from haqjax.run.terminal import say
from haqjax.searchers import make_problem
from haqjax.tracing.hooks import map_weights
from haqjax.training.checkpoints import fingerprint
from haqjax.types import FULL_PRECISION, WIDTHS, Ranges

UNUSUAL = re.compile(r"[^\w.+-]")  # letters of a machine's name that do not belong in a folder's
SENSITIVITY_SEED = 0  # the same for all searches: a seed is that of the search alone
MAY_DIFFER = ("resume", "out", "episodes", "patience", "hosts")  # when a search goes on


def run_search(config: SearchConfig, console: Console) -> Path:
    """Searches a policy, or a front of them, and writes a run folder; the last lines printed are the result.

    Returns:
      The run folder.

    Raises:
      ValueError: bad input, also a budget below the floor; nothing has been trained or written.
      OSError: the run folder cannot be written; what it holds of the search can be resumed.
      RuntimeError: interrupted before the first round ended, or no policy qualified.
    """
    join(config.run.hosts, console)
    console = make_speaker(console)
    config, out = from_first(lambda: find_folder(use_own_data(config)))
    config.check_files()
    if config.run.resume is not None and out is not None:
        with hold_search(out, console):
            return _search(config, out, console)
    return _search(config, out, console)


def _search(config: SearchConfig, out: Path | None, console: Console) -> Path:
    """Searches into a folder that is there and held, or into a new one, which is made once a search can begin."""
    prepared = prepare(config)
    out = out or check_free(free_folder(_name_folder(config, prepared)))
    for note in prepared.data.notes:
        say(console, note)
    weights = config.network.weights
    params = from_first(lambda: load_network(prepared.network, prepared.data, weights, console).params)
    network = dataclasses.replace(prepared.network, params=params)
    with show_phase(console, "calibrating"):
        ranges = from_first(lambda: find_ranges(config.quantizer, config.by_codebook, network, prepared.data))
    config = choose_batch_sizes(config, network, prepared.data.search, ranges)
    with show_phase(console, "measuring float, 8 bits, uniform"):
        run = _pose(config, prepared, network, ranges, _estimate_sensitivity(config, prepared, network, ranges))
    new = config.run.resume is None
    with make_run_folder(out, config, console) if new else contextlib.nullcontext():
        result = run_resumable(config, prepared, run.problem, out, console, run.baselines.weights)
        if count := count_not_finite(result.records):
            total = len(result.records.accuracy)
            say(console, f"{count} of {total} policies gave outputs that are not finite: none was chosen.")
        answers_to(config.aim).conclude(run, result, out, console)
    return out


def find_folder(config: SearchConfig) -> tuple[SearchConfig, Path | None]:
    """Finds the configuration to run and the folder, where one is given: that of the run to resume, or a new one.

    Raises:
      ValueError: the run to resume is not there, or was started with other options.
    """
    run = config.run
    if run.resume is None:
        target = config.target
        if target.budget is None and target.front is None and target.max_drop is None:
            config = with_options(config, {"front": usual_front(target)})  # as it is now, whatever it will be
        return config, None if run.out is None else Path(run.out)
    if run.out is not None and not _is_same(run.out, run.resume):
        raise ValueError(
            f"a search that goes on writes to its own folder, {run.resume}, not to {run.out}: leave out OUT"
        )
    before = open_folder(run.resume)
    if not os.access(run.resume, os.W_OK | os.X_OK):
        raise ValueError(f"{run.resume} cannot be written to, and a search that goes on writes there: make it writable")
    asked, started, usual = to_options(config), to_options(before), to_options(SearchConfig())
    for name in asked:
        if name not in MAY_DIFFER and asked[name] not in (usual[name], started[name]):
            raise ValueError(
                f"{run.resume} was started with {name} {quote(started[name])}, not {quote(asked[name])}: leave it "
                "out, or start anew"
            )
    longer = {name: (started if asked[name] == usual[name] else asked)[name] for name in ("episodes", "patience")}
    for name, value in longer.items():
        if before.aim.resource is not None and value != started[name]:
            shared = "which are divided among its budgets" if name == "episodes" else "which says when a budget is done"
            raise ValueError(f"{run.resume} was started with {name} {started[name]}, {shared}: leave it out")
    changes = {"resume": run.resume, **longer, "out": None, "hosts": run.hosts}
    return with_options(before, changes), Path(run.resume)


def _is_same(one: str, other: str) -> bool:
    return Path(one).absolute() == Path(other).absolute()


def _name_folder(config: SearchConfig, prepared: PreparedSearch) -> str:
    method = config.method
    name = f"{config.network.model}-{prepared.machine}-{config.aim.slug}-{method.search}-seed{method.seed}"
    return f"runs/{UNUSUAL.sub('-', name)}"


def _estimate_sensitivity(
    config: SearchConfig, prepared: PreparedSearch, network: AnyNetwork, ranges: Ranges
) -> Float[np.ndarray, "L 2 8"] | None:
    """Estimates what the search begins with; None where it asks for nothing."""
    if config.method.search != "ilp":
        return None
    if any(map_weights(lambda use, _: use.looped, network.apply, network.params, network.example, each_use=True)):
        return None  # it probes
    split, key = prepared.data.search, jax.random.key(SENSITIVITY_SEED)
    return from_first(lambda: estimate_gauss_newton_sensitivity(network.apply, network.params, split, ranges, key=key))


def _pose(
    config: SearchConfig,
    prepared: PreparedSearch,
    network: AnyNetwork,
    ranges: Ranges,
    sensitivity: Float[np.ndarray, "L 2 8"] | None,
) -> SearchRun:
    """Makes the problem, and the policies that a search is compared with, measured on the search split."""
    data = prepared.data
    evaluator, unseen = (
        make_split_evaluator(config, prepared, network, split, ranges) for split in (data.search, data.report)
    )
    eight = jnp.full((len(prepared.layers), 2), WIDTHS)
    baselines = {"float": jnp.full_like(eight, FULL_PRECISION), "8_bits": leave_activations(config, eight)}
    reference = measure(evaluator, baselines)["float"]
    if np.isinf(reference.loss):
        raise ValueError(
            "the float network gives outputs that are not finite on the images of the search: check its weights and "
            "how the images are scaled"
        )
    uniform = answers_to(config.aim).find_uniform(config, prepared, evaluator, float(reference.accuracy))
    baselines["uniform"] = leave_activations(config, uniform)
    problem = make_problem(
        prepared.layers,
        prepared.table,
        prepared.bounds,
        prepared.budget,
        make_search_evaluator(config, prepared, network, ranges, evaluator),
        reference.accuracy,
        reference_loss=reference.loss,
        images=len(data.search),
        sensitivity=sensitivity,
    )
    measured = Measured(
        policies={name: np.asarray(policy) for name, policy in baselines.items()},
        searched=measure_accuracies(evaluator, baselines),
        reported={},
        images=(len(data.search), len(data.report)),
        weights=fingerprint(network.params),
    )
    return SearchRun(config, prepared, problem, (evaluator, unseen), measured)
