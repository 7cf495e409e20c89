"""The evaluate and finetune commands: what can be done with a finished run."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree
from rich.console import Console

from haqjax.evaluation import make_evaluate
from haqjax.evaluation.comparison import as_document, compare, tell
from haqjax.files import check_free, write_json
from haqjax.models import Network
from haqjax.policies.actions import from_rows, uniform
from haqjax.quantizers.rounding_offsets import to_nearest
from haqjax.report import Row, comparison_table
from haqjax.run.config.commands import EvaluateConfig, FinetuneConfig, SearchConfig
from haqjax.run.float_network import fingerprint, load_network, make_progress
from haqjax.run.folder.files import cost_of, open_folder, read_file
from haqjax.run.setup import Task, find_ranges, leave_activations, measure, prepare
from haqjax.training import Progress, Tuned, finetune_all, load_params, save_params
from haqjax.types import FULL_PRECISION, WIDTHS, Ranges

FINETUNED, FINETUNING = "finetuned", "finetuning"  # folders within the run folder: the result, and its checkpoints


class FinishedRun(NamedTuple):
    """A finished run with its network, ready to be measured again."""

    config: SearchConfig
    task: Task
    network: Network  # trained, float
    ranges: Ranges
    policy: Int[Array, "L 2"]
    uniform: Int[Array, "L 2"]


def run_evaluate(config: EvaluateConfig, console: Console) -> dict[str, float]:
    """Measures a run's policy on the report split again, with the fine-tuned weights where there are any.

    `evaluation.json` in the run folder tells more than what is printed: which answers changed, and each layer's
    signal-to-noise ratio.

    Returns:
      Accuracies in 0..1 by name.

    Raises:
      ValueError: no finished run there.
    """
    run = open_run(config.run, console)
    whole = jnp.full_like(run.policy, FULL_PRECISION)
    eight = leave_activations(run.config, jnp.full_like(whole, WIDTHS))
    policies = {"float": whole, "8 bits": eight, "uniform": run.uniform, "policy": run.policy}
    found = measure(_judge(run, run.network.params, run.ranges), policies)
    params, ranges = run.network.params, run.ranges
    tuned = Path(config.run) / FINETUNED
    if tuned.is_dir():
        params, ranges = _load_tuned(tuned, run)
        found["policy, fine-tuned"] = measure(_judge(run, params, ranges), {"policy": run.policy})["policy"]
        policies["policy, fine-tuned"] = run.policy
    images = len(run.task.data.report)
    rows = [
        Row(name, found[name], images, cost_of(run.task.table, policies[name])) for name in found if name != "float"
    ]
    console.print(comparison_table(rows, f"{config.run}: accuracy on the {images} images of the report split"))
    console.print(f"float {100 * found['float']:.1f} %", highlight=False)
    compared = compare(run.network.apply, run.network.params, run.task.data.report, run.policy, ranges, tuned=params)
    console.print("\n".join(tell(compared, run.task.layers.names)), highlight=False)
    write_json(
        Path(config.run) / "evaluation.json", {"accuracies": found} | as_document(compared, run.task.layers.names)
    )
    return found


def run_finetune(config: FinetuneConfig, console: Console) -> Path:
    """Fine-tunes the network under a run's policy and keeps the weights in the run folder.

    Stopped on the way, it goes on from its last checkpoint when asked again with the same options.

    Returns:
      The folder of weights and ranges; `finetune.json` beside it tells the accuracies before and after.

    Raises:
      ValueError: no finished run there, or one that was fine-tuned before.
    """
    config.check()
    out = check_free(Path(config.run) / FINETUNED)
    run = open_run(config.run, console)
    before = measure(_judge(run, run.network.params, run.ranges), {"policy": run.policy})["policy"]
    with make_progress(console) as progress:
        bar = progress.add_task(f"fine-tuning {run.config.model}", total=config.epochs, note="compiling")

        def on_epoch(epoch: Progress) -> None:
            progress.update(bar, completed=epoch.epoch, note=f"training accuracy {100 * epoch.accuracy:.1f} %")

        tuned = finetune_all(
            run.network.apply, run.network.params, run.policy, run.ranges, run.task.data.train, config.tuning,
            key=jax.random.key(config.seed), apply_train=run.network.apply_train,
            checkpoints=Path(config.run) / FINETUNING, on_epoch=on_epoch,
        )  # fmt: skip
    after = measure(_judge(run, *tuned), {"policy": run.policy})["policy"]
    _save_tuned(out, tuned)
    shutil.rmtree(Path(config.run) / FINETUNING)
    told = {"report": {"before": before, "after": after, "images": len(run.task.data.report)}}
    write_json(Path(config.run) / "finetune.json", dataclasses.asdict(config) | told)
    console.print(
        f"policy of {config.run} on the report split: {100 * before:.1f} % before, {100 * after:.1f} % after "
        f"fine-tuning; weights in {out}",
        highlight=False,
        soft_wrap=True,
    )
    return out


def open_run(folder: str | Path, console: Console) -> FinishedRun:
    """Reads a run folder and makes its network and ranges again.

    Raises:
      ValueError: no finished run there.
    """
    told = read_file(Path(folder) / "policy.json", json.loads, "layers", "uniform_bits", "weights")
    config = open_folder(folder)
    task = prepare(dataclasses.replace(config, out=None))
    network = load_network(task.network, task.data, config.weights, console)
    if told["weights"] != fingerprint(network.params):
        raise ValueError(
            f"the float network of {folder} is not at hand: what is cached or was trained now differs from what the "
            "run used; search again, with WEIGHTS for a network that is kept"
        )
    ranges = find_ranges(config, network, task.data)
    policy = from_rows(told["layers"], task.layers.names)
    even = leave_activations(config, uniform(told["uniform_bits"], task.bounds))
    return FinishedRun(config, task, network, ranges, policy, even)


def _judge(run: FinishedRun, params: PyTree, ranges: Ranges) -> jax.tree_util.Partial:
    return make_evaluate(
        run.network.apply, params, run.task.data.report, ranges, batch_size=run.config.batch_size,
        policies_at_once=run.config.policies_at_once or 1,
    )  # fmt: skip


def _save_tuned(out: Path, tuned: Tuned) -> None:
    """Ranges first: where the parameters are, both are."""
    save_params(out / "ranges", {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tuned.ranges))})
    save_params(out / "params", tuned.params)


def _load_tuned(folder: Path, run: FinishedRun) -> Tuned:
    leaves, tree = jax.tree.flatten(to_nearest(run.ranges))
    found = load_params(folder / "ranges", {str(i): leaf for i, leaf in enumerate(leaves)})
    ranges = jax.tree.unflatten(tree, [found[str(i)] for i in range(len(leaves))])
    return Tuned(load_params(folder / "params", run.network.params), ranges)
