"""Options that every experiment has on the command line."""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable
from typing import Any

import tyro

from haqjax.cli import keep_compiled_programs, say_in_one_line

BAD_INPUT = 2  # exit status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options that every experiment has."""

    out: str
    """Folder to write; never overwritten."""
    data: str = "digits"
    """digits, tfds:cifar10, tfds:imagenet2012, folder:PATH or npz:FILE; see docs/data.md."""
    data_dir: str | None = None
    """Folder of tfds data sets."""
    preprocessing: str | None = None
    """How images are scaled and cropped, see docs/data.md. Default: what suits the weights, else the data."""
    weights: str | None = None
    """Trained weights, where {model} stands for the network's name: '../shared/data/{model}_imagenet.safetensors',
    'timm:...' or 'hf:...'. Default: train on first use, then reuse."""
    halve_report: bool = False
    """Search on half of the report split, report on the other half: for data with few images besides."""
    images: int | None = None
    """Images to search by, at most. Default: all of the split."""
    searcher: str = "ilp"
    """How to search; the paper's agent is haq."""
    episodes: int = 300
    """Policies that a search evaluates."""
    seeds: int = 3
    """Searches with different random numbers; the network is the same."""
    quick: bool = False
    """A smoke test of a few policies, one seed and few images; without weights, of a network with a quarter of the
    channels at 16 pixels, trained for seconds."""

    def small(self, **changes: Any) -> Any:
        """Shrinks the experiment where `--quick` asks for it."""
        smaller = dict(episodes=8, seeds=1) | changes
        return dataclasses.replace(self, **smaller) if self.quick else self


def launch(main: Callable[[Any], dict], config: type, doc: str | None) -> None:
    """Reads the command line and runs an experiment; bad input is one line and exit status 2."""
    try:
        asked = read_options(config, doc)
        keep_compiled_programs()
        main(asked)
    except (ValueError, ImportError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_INPUT)


def read_options(config: type, doc: str | None) -> Any:
    """Reads the configuration from the command line.

    Raises:
      ValueError: an option that does not exist, or a value that is none of its kind.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config, description=doc)
    except SystemExit as stopped:
        if not stopped.code:  # help was asked for
            raise
    raise ValueError(say_in_one_line(said.getvalue()))
