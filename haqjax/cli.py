"""The command line: python -m haqjax search | train | evaluate | finetune | report | table | hardware."""

import contextlib
import errno
import io
import itertools
import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console

from haqjax.reading import one_line
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
FAILED, BAD_INPUT, INTERNAL, INTERRUPTED = 1, 2, 70, 130  # exit statuses; 70 is EX_SOFTWARE of sysexits.h
MESSAGE = 500  # characters, at most
DEBUG = "--debug"
SEE = f"run again with {DEBUG} to see the traceback"
SMALLER = "not enough memory: make image_size, batch_size, parallel, policies_at_once or the machine's counts smaller"
CACHE_BYTES = 1 << 30  # with a limit, JAX locks the folder of compiled programs against other processes
PACKAGE = Path(__file__).resolve().parent
LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def main() -> None:
    """Runs one command; whatever goes wrong is one line on standard error, after a traceback with `--debug`."""
    words = sys.argv[1:]
    warnings.showwarning = make_warner()
    try:
        config = read_config([word for word in words if word != DEBUG])
        keep_compiled_programs()
        dict(COMMANDS.values())[type(config)](config, _Console())
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError):
            _close_output()
        if DEBUG in words:
            traceback.print_exception(error)
        line, status = describe_error(error)
        print(line, file=sys.stderr)
        leave(status)


def read_config(words: Sequence[str]) -> Any:
    """Reads the configuration that the words of a command line ask for.

    Raises:
      ValueError: a command or option that does not exist, or a value that is none of its kind.

    >>> read_config(["train", "--model", "resnet20"]).model
    'resnet20'
    """
    said = io.StringIO()
    flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes)  # --model, not --network.model
    commands: dict[str, Callable[..., Any]] = {name: flat(kind) for name, (kind, _) in COMMANDS.items()}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog="haqjax", args=list(words), description=f"With {DEBUG}, an error shows its traceback."
            )
    except SystemExit as stopped:
        if stopped.code == 0 or not said.getvalue().strip():  # help was asked for
            raise
        # A record's own check says it best; the rest, such as an unknown option, stands in tyro's box.
        raise ValueError(_find_check(stopped) or say_in_one_line(said.getvalue())) from None


def describe_error(error: BaseException) -> tuple[str, int]:
    """Describes an error in one line of at most 500 characters, and gives the status to exit with.

    Notes on the error (`add_note`) say how to go on; they stand at the end of the line, whatever its length.

    >>> describe_error(ValueError("seed is -1"))
    ('haqjax: seed is -1', 2)
    """
    text, status, hints = _classify(error)
    end = "".join(f"; {one_line(hint, 200)}" for hint in [*hints, *getattr(error, "__notes__", [])[:1]])
    return f"haqjax: {one_line(text, MESSAGE - len('haqjax: ') - len(end))}{end}", status


def _classify(error: BaseException) -> tuple[str, int, list[str]]:
    """Finds whose fault an error is: the text, the exit status, and what to do besides."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted before there was a result", INTERRUPTED, []
    if isinstance(error, BrokenPipeError):
        return "what reads its output has ended", FAILED, []
    place, own = _find_place(error)
    if not own and not _is_out_of_memory(error):
        return f"{place} raised {type(error).__name__}: {error}", BAD_INPUT, [SEE]
    if isinstance(error, OSError):
        return _describe_system_error(error), BAD_INPUT, []
    if isinstance(error, ValueError | ImportError):
        return str(error), BAD_INPUT, []
    if type(error) is RuntimeError:
        return str(error), FAILED, []
    if _is_out_of_memory(error):
        return f"{SMALLER} ({place})", INTERNAL, [SEE]
    return f"internal error: {type(error).__name__}: {one_line(error, 200)} ({place})", INTERNAL, [SEE]


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def _describe_system_error(error: OSError) -> str:
    """Describes an error of the system by its file and its reason, without its number."""
    if error.errno is None or error.filename is None:
        return f"{error.strerror}: {SPACE}" if error.errno in FULL else str(error)
    name = one_line(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename, 200)
    return f"{name}: {error.strerror}" + (f"; {SPACE}" if error.errno in FULL else "")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SPACE = "nothing of that name was written; make room and ask again"


def _find_place(error: BaseException) -> tuple[str, bool]:
    """Finds the innermost place outside of libraries, and whether it is in this package and not in the user's code."""
    if isinstance(error, SyntaxError) and error.filename and not Path(error.filename).is_relative_to(PACKAGE):
        return f"{Path(error.filename).name}:{error.lineno}", False
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).resolve().is_relative_to(PACKAGE):
            return f"{Path(frame.filename).resolve().relative_to(PACKAGE.parent)}:{frame.lineno}", True
        if not frame.filename.startswith((*LIBRARIES, "<")):
            return f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name},", False
    return "outside of haqjax", True


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


class _Console(Console):
    """A console that raises where its reader has gone, so that a search says how it can go on."""

    def on_broken_pipe(self) -> None:
        raise


def _close_output() -> None:
    """Sends what is still in the buffer nowhere: Python would complain about it at the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
