"""The finetune command: the network of a finished run, fine-tuned under its policy."""

import dataclasses
import shutil
from pathlib import Path

import jax
from rich.console import Console

from haqjax.files import check_free, write_json
from haqjax.run.config.commands import FinetuneConfig
from haqjax.run.finished import FINETUNED, FINETUNING, measure_run, open_run, save_tuned
from haqjax.run.folder.documents import TUNED, open_folder
from haqjax.run.progress import show_progress
from haqjax.run.resumable import hold_folder
from haqjax.training import Progress, finetune_all


def run_finetune(config: FinetuneConfig, console: Console) -> Path:
    """Fine-tunes the network under a run's policy and keeps the weights in the run folder.

    Stopped on the way, it goes on from its last checkpoint when asked again with the same options.

    Returns:
      The folder of weights and ranges; `finetune.json` beside it has the accuracies before and after.

    Raises:
      ValueError: no finished run there, one that was fine-tuned before, or one that another process writes to.
    """
    folder = Path(config.run)
    open_folder(folder)
    with hold_folder(folder, console, FINETUNING, f"go on with the same command, from the checkpoints in {folder}"):
        return _finetune(config, check_free(folder / FINETUNED), console)


def _finetune(config: FinetuneConfig, out: Path, console: Console) -> Path:
    run = open_run(config.run, console)
    policies, report = {"policy": run.policy}, run.prepared.data.report
    before = measure_run(run, run.network.params, run.ranges, policies)["policy"]
    with show_progress(console, f"fine-tuning {run.config.network.model}", config.epochs) as advance:

        def on_epoch(epoch: Progress) -> None:
            advance(epoch.epoch, f"training accuracy {100 * epoch.accuracy:.1f} %")

        tuned = finetune_all(
            run.network.apply,
            run.network.params,
            run.policy,
            run.ranges,
            run.prepared.data.train,
            config.tuning,
            key=jax.random.key(config.seed),
            apply_train=run.network.apply_train,
            checkpoints=Path(config.run) / FINETUNING,
            on_epoch=on_epoch,
        )
    after = measure_run(run, *tuned, policies)["policy"]
    save_tuned(out, tuned)
    shutil.rmtree(Path(config.run) / FINETUNING)
    found = {"report": {"before": before, "after": after, "images": len(report)}}
    write_json(Path(config.run) / TUNED, dataclasses.asdict(config) | found)
    console.print(
        f"policy of {config.run} on the report split: {100 * before:.1f} % before, {100 * after:.1f} % after "
        f"fine-tuning; weights in {out}",
        highlight=False,
        soft_wrap=True,
    )
    return out
