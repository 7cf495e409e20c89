"""The command line: python -m haqjax search | train | evaluate | finetune | report | table | hardware."""

import contextlib
import io
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax
import tyro
from rich.console import Console

from haqjax.run import (
    EvaluateConfig,
    FinetuneConfig,
    HardwareConfig,
    ReportConfig,
    SearchConfig,
    TableConfig,
    TrainConfig,
    run_evaluate,
    run_finetune,
    run_hardware,
    run_report,
    run_search,
    run_table,
    run_train,
)
from haqjax.run.distributed import leave
from haqjax.run.float_network import cache_folder
from haqjax.run.terminal import make_warner

COMMANDS: dict[str, tuple[type, Callable]] = {
    "search": (SearchConfig, run_search),
    "train": (TrainConfig, run_train),
    "evaluate": (EvaluateConfig, run_evaluate),
    "finetune": (FinetuneConfig, run_finetune),
    "report": (ReportConfig, run_report),
    "table": (TableConfig, run_table),
    "hardware": (HardwareConfig, run_hardware),
}
BAD_INPUT, INTERRUPTED = 2, 130
CACHE_BYTES = 1 << 30  # with a limit, JAX locks the folder of compiled programs against other processes


def main() -> None:
    """Runs one command; bad input is one line on standard error and exit status 2."""
    warnings.showwarning = make_warner()
    try:
        config = read_config()
        keep_compiled_programs()
        dict(COMMANDS.values())[type(config)](config, Console())
    except (ValueError, ImportError, OSError) as error:
        leave(_complain(error, BAD_INPUT))
    except RuntimeError as error:
        leave(_complain(error, 1))
    except KeyboardInterrupt:
        leave(_complain("interrupted before there was a result", INTERRUPTED))


def read_config() -> Any:
    """Reads the configuration that the command line asks for.

    Raises:
      ValueError: a command or option that does not exist, or a value that is none of its kind.
    """
    said = io.StringIO()
    flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes)  # --model, not --network.model
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                {name: flat(kind) for name, (kind, _) in COMMANDS.items()}, prog="haqjax"
            )
    except SystemExit as stopped:
        if stopped.code == 0 or not said.getvalue().strip():  # help was asked for
            raise
        # A record's own check says it best; the rest, such as an unknown option, stands in tyro's box.
        raise ValueError(_find_check(stopped) or say_in_one_line(said.getvalue())) from None


def _find_check(error: BaseException | None) -> str:
    """Finds what a record's own check said among the errors that led to this one; nothing where none was reached."""
    while error is not None:
        functions = (frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))
        if type(error) is ValueError and "__post_init__" in functions:
            return str(error)
        error = error.__cause__ or error.__context__
    return ""


def say_in_one_line(box: str) -> str:
    """Takes the message out of tyro's box of a title, the message, a rule, and help."""
    lines = (line.strip(" │|╭╮╰╯") for line in box.splitlines())
    parts = [list(part) for is_text, part in itertools.groupby(lines, lambda line: bool(line.strip(" ─-"))) if is_text]
    _, *message = parts[0]
    return " ".join(message or parts[1])


def keep_compiled_programs() -> None:
    """Keeps what JAX compiles for the next run, unless the user's own JAX settings say where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _complain(error: object, status: int) -> int:
    print(f"haqjax: {error}", file=sys.stderr)
    return status
