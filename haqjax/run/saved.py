"""The evaluate and finetune commands: what can be done with a finished run."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import yaml
from jaxtyping import Array, Int, PyTree
from rich.console import Console

from haqjax.files import check_free, write_json
from haqjax.models import Network
from haqjax.policy import from_rows, uniform
from haqjax.pricing import price
from haqjax.quantize import calibrate
from haqjax.report import Row, comparison_table
from haqjax.run.config import EvaluateConfig, FinetuneConfig, SearchConfig
from haqjax.run.network import fingerprint, load_network, make_progress
from haqjax.run.search import Task, calibration_batches, measure, prepare
from haqjax.train import Progress, finetune, load_params, make_evaluate, save_params
from haqjax.types import FULL_PRECISION, WIDTHS, Ranges

FINETUNED = "finetuned"  # folder of weights within the run folder


class SavedRun(NamedTuple):
    """A finished run with its network, ready to be measured again."""

    config: SearchConfig
    task: Task
    network: Network  # trained, float
    ranges: Ranges
    policy: Int[Array, "L 2"]
    uniform: Int[Array, "L 2"]


def run_evaluate(config: EvaluateConfig, console: Console) -> dict[str, float]:
    """Measures a run's policy on the report split again, with the fine-tuned weights where there are any.

    Returns:
      Accuracies in 0..1 by name.

    Raises:
      ValueError: no finished run there.
    """
    run = open_run(config.run, console)
    whole = jnp.full_like(run.policy, FULL_PRECISION)
    policies = {"float": whole, "8 bits": jnp.full_like(whole, WIDTHS), "uniform": run.uniform, "policy": run.policy}
    found = measure(_judge(run, run.network.params), policies)
    tuned = Path(config.run) / FINETUNED
    if tuned.is_dir():
        params = load_params(tuned, run.network.params)
        found["policy, fine-tuned"] = measure(_judge(run, params), {"policy": run.policy})["policy"]
        policies["policy, fine-tuned"] = run.policy
    images = len(run.task.data.report)
    rows = [Row(name, found[name], images, price(run.task.table, policies[name])) for name in found if name != "float"]
    console.print(comparison_table(rows, f"{config.run}: accuracy on the {images} images of the report split"))
    console.print(f"float {100 * found['float']:.1f} %", highlight=False)
    return found


def run_finetune(config: FinetuneConfig, console: Console) -> Path:
    """Fine-tunes the network under a run's policy and keeps the weights in the run folder.

    Returns:
      The folder of weights; `finetune.json` beside it tells the accuracies before and after.

    Raises:
      ValueError: no finished run there, or one that was fine-tuned before.
    """
    config.check()
    out = check_free(Path(config.run) / FINETUNED)
    run = open_run(config.run, console)
    before = measure(_judge(run, run.network.params), {"policy": run.policy})["policy"]
    with make_progress(console) as progress:
        bar = progress.add_task(f"fine-tuning {run.config.model}", total=config.epochs, note="compiling")

        def on_epoch(epoch: Progress) -> None:
            progress.update(bar, completed=epoch.epoch, note=f"training accuracy {100 * epoch.accuracy:.1f} %")

        params = finetune(
            run.network.apply, run.network.params, run.policy, run.ranges, run.task.data.train,
            epochs=config.epochs, learning_rate=config.learning_rate, key=jax.random.key(config.seed),
            on_epoch=on_epoch,
        )  # fmt: skip
    after = measure(_judge(run, params), {"policy": run.policy})["policy"]
    save_params(out, params)
    told = {"report": {"before": before, "after": after, "images": len(run.task.data.report)}}
    write_json(Path(config.run) / "finetune.json", dataclasses.asdict(config) | told)
    console.print(
        f"policy of {config.run} on the report split: {100 * before:.1f} % before, {100 * after:.1f} % after "
        f"fine-tuning; weights in {out}",
        highlight=False,
        soft_wrap=True,
    )
    return out


def open_run(folder: str | Path, console: Console) -> SavedRun:
    """Reads a run folder and makes its network and ranges again.

    Raises:
      ValueError: no finished run there.
    """
    told = _read(Path(folder) / "policy.json", json.loads, "layers", "uniform_bits", "weights")
    asked = _read(Path(folder) / "config.yaml", yaml.safe_load, "model", "hw")
    fields = {field.name for field in dataclasses.fields(SearchConfig)}
    config = SearchConfig(**{name: value for name, value in asked.items() if name in fields})
    task = prepare(dataclasses.replace(config, out=None))
    network = load_network(task.network, task.data, config.weights, console)
    if told["weights"] != fingerprint(network.params):
        raise ValueError(
            f"the float network of {folder} is not at hand: what is cached or was trained now differs from what the "
            "run used; search again, with WEIGHTS for a network that is kept"
        )
    ranges = calibrate(network.apply, network.params, calibration_batches(task.data.train), config.calibration)
    policy = from_rows(told["layers"], task.layers.names)
    return SavedRun(config, task, network, ranges, policy, uniform(told["uniform_bits"], task.bounds))


def _judge(run: SavedRun, params: PyTree) -> jax.tree_util.Partial:
    return make_evaluate(run.network.apply, params, run.task.data.report, run.ranges)


def _read(path: Path, parse: Any, *keys: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} is no finished run: it has no {path.name}")
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not what a search wrote")
    return found
