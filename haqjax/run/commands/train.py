"""The train command: a float network in a folder of weights."""

from pathlib import Path

from rich.console import Console

from haqjax.data import load
from haqjax.evaluation import measure_accuracy
from haqjax.files import check_free
from haqjax.run.config.commands import TrainConfig, free_folder
from haqjax.run.float_network import empty_network, train_network
from haqjax.run.terminal import say
from haqjax.training import save_params
from haqjax.training.checkpoints import shorten_disk_errors


def run_train(config: TrainConfig, console: Console) -> Path:
    """Trains a network, says how accurate it is on the report split, and writes its weights.

    Raises:
      ValueError: bad input; nothing is written.
    """
    name = f"weights/{config.model}-{config.data.replace(':', '-').replace('/', '-')}-seed{config.seed}"
    out = check_free(free_folder(name) if config.out is None else config.out)
    data = load(config.data, data_dir=config.data_dir, preprocessing=config.preprocessing, image_size=config.image_size)
    network = train_network(empty_network(config.model, data), data, config.seed, console)
    measured = measure_accuracy(network.apply, network.params, data.report)
    with shorten_disk_errors(out, Exception):
        save_params(out, network.params)
    say(
        console,
        f"{config.model} on {data.name}: {100 * measured.value:.1f} ± {100 * measured.error:.1f} % on the "
        f"{len(data.report)} images of the report split; weights in {out}",
    )
    return out
