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
from haqjax.run.terminal import say
from haqjax.training import Progress, finetune_all
from haqjax.training.checkpoints import has_checkpoint, shorten_disk_errors


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
        return _finetune(config, _free_place(folder), console)


def _free_place(folder: Path) -> Path:
    """Returns the folder to write: a new one, or one that a fine-tuning was killed while writing.

    `finetune.json` is written last, then the checkpoints go: what is there without it, but with checkpoints, is of a
    fine-tuning that goes on.
    """
    out, checkpoints = folder / FINETUNED, folder / FINETUNING
    if (folder / TUNED).exists():
        shutil.rmtree(checkpoints, ignore_errors=True)
    return out if out.is_dir() and has_checkpoint(checkpoints) else check_free(out)


def _finetune(config: FinetuneConfig, out: Path, console: Console) -> Path:
    folder = Path(config.run)
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
            checkpoints=folder / FINETUNING,
            on_epoch=on_epoch,
        )
    after = measure_run(run, *tuned, policies)["policy"]
    with shorten_disk_errors(folder, Exception):
        save_tuned(out, tuned)
    found = {"report": {"before": before, "after": after, "images": len(report)}}
    write_json(folder / TUNED, dataclasses.asdict(config) | found)
    shutil.rmtree(folder / FINETUNING)
    say(
        console,
        f"policy of {config.run} on the report split: {100 * before:.1f} % before, {100 * after:.1f} % after "
        f"fine-tuning; weights in {out}",
    )
    return out
