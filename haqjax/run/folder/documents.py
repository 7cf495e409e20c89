"""Reading of a run folder: each file by its type, every fault one line with the file and the field."""

import csv
import io
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from haqjax.reading import one_line, quote, read_json, read_text, read_yaml
from haqjax.run.config.options import to_options
from haqjax.run.config.search import SearchConfig
from haqjax.run.folder.schema import EpisodeRow, FrontFile, PolicyFile, TunedFile, check_kind

EPISODES, CONFIG, POLICY, FRONT, TUNED = "episodes.csv", "config.yaml", "policy.json", "front.json", "finetune.json"
EPISODES_BYTES = 256 << 20
NEEDED = ("model", "hw")  # in every configuration
COLUMNS = tuple(msgspec.structs.fields(EpisodeRow))
LINE = 480  # characters of a message, at most
T = TypeVar("T")


class RunConfig(NamedTuple):
    """`config.yaml`: what a run was asked, and what it ran on."""

    config: SearchConfig
    options: dict[str, Any]  # as they stand there
    versions: dict[str, str]
    device: str | None


class _About(msgspec.Struct, frozen=True):
    """What stands in `config.yaml` besides options."""

    versions: dict[str, str] | None = None
    device: str | None = None


def read_run_config(folder: str | Path) -> RunConfig:
    """Reads `config.yaml`, of a search that may still run.

    Raises:
      ValueError: no search was started there, or a value is none of its option; names the file and the option.
    """
    path = _find(folder, CONFIG)
    document = read_yaml(path)
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise ValueError(f"{path} is {quote(document)}, expected options by name: it is not what a search wrote")
    if missing := [name for name in NEEDED if name not in document]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not what a search wrote")
    about = _convert(path, {name: document[name] for name in ("versions", "device") if name in document}, _About)
    options = {name: value for name, value in document.items() if name not in ("versions", "device")}
    if unknown := sorted(set(options) - set(to_options(SearchConfig()))):
        raise ValueError(f"{path} has {quote(unknown[0])}, which is no option of a search: take it out")
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    try:
        config = SearchConfig.of(**lists)
    except ValueError as error:
        raise ValueError(one_line(f"{path}: {error}", LINE)) from None
    return RunConfig(config, options, about.versions or {}, about.device)


def open_folder(folder: str | Path) -> SearchConfig:
    """Reads the configuration that a run was started with; see `read_run_config`."""
    return read_run_config(folder).config


def read_policy(folder: str | Path, config: SearchConfig) -> PolicyFile:
    """Reads `policy.json`, which a search writes last.

    Raises:
      ValueError: the search has not ended, or the file is not what one wrote.
    """
    path = Path(folder) / POLICY
    if not path.exists():
        how = f"make search RESUME={shlex.quote(str(folder))}"
        raise ValueError(f"{folder} has no {POLICY}, as its search has not ended: go on with `{how}`")
    found = read_document(path, PolicyFile)
    try:
        check_kind(found.layers, config.by_codebook)
    except ValueError as error:
        raise ValueError(one_line(f"{path}: {error}", LINE)) from None
    return found


def read_front(folder: str | Path, policy: PolicyFile) -> FrontFile | None:
    """Reads `front.json`; None where the run searched none.

    Raises:
      ValueError: it is not what a search wrote, or of another network than `policy.json`.
    """
    path = Path(folder) / FRONT
    if not path.exists():
        return None
    front, names = read_document(path, FrontFile), [layer.name for layer in policy.layers]
    for at, point in enumerate(front.policies):
        if point.layers is not None and [layer.name for layer in point.layers] != names:
            raise ValueError(f"{path}: policies[{at}].layers are of another network than {POLICY}")
    return front


def read_tuned(folder: str | Path) -> TunedFile | None:
    """Reads `finetune.json`; None where the run was not fine-tuned.

    Raises:
      ValueError: it is not what a fine-tuning wrote.
    """
    path = Path(folder) / TUNED
    return read_document(path, TunedFile) if path.exists() else None


def read_episodes(folder: str | Path) -> list[EpisodeRow] | None:
    """Reads `episodes.csv`; None where there is none.

    Raises:
      ValueError: a column or a cell that no search wrote, with its line.
    """
    path = Path(folder) / EPISODES
    if not path.exists():
        return None
    reader = csv.reader(io.StringIO(read_text(path, EPISODES_BYTES), newline=""), strict=True)
    try:
        header = next(reader, [])
        _check_columns(path, header)
        return [_read_row(path, header, cells, at) for at, cells in enumerate(reader)]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {one_line(error, 200)}") from None


def read_document(path: Path, kind: type[T]) -> T:
    """Reads a JSON file as a record.

    Raises:
      ValueError: as `haqjax.reading.read_json`, or a field that is missing or none of its type.
    """
    return _convert(path, read_json(path), kind)


def _find(folder: str | Path, name: str) -> Path:
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"{folder} is not there: give the folder of a run")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the folder of a run")
    if not (folder / name).exists():
        raise ValueError(f"{folder} is no run folder: it has no {name}")
    return folder / name


def _check_columns(path: Path, header: list[str]) -> None:
    fields = {column.name: column.required for column in COLUMNS}
    if missing := [name for name, required in fields.items() if required and name not in header]:
        raise ValueError(f"{path} is not what a search wrote: it has no column {', '.join(missing)}")
    if unknown := [name for name in header if name not in fields or header.count(name) > 1]:
        raise ValueError(f"{path} is not what a search wrote: column {quote(unknown[0])}")


def _read_row(path: Path, header: list[str], cells: list[str], at: int) -> EpisodeRow:
    if len(cells) != len(header):
        raise ValueError(f"{path}, line {at + 2}: {len(cells)} cells for {len(header)} columns")
    values = {name: cell or None for name, cell in zip(header, cells, strict=True)}
    row = _convert(f"{path}, line {at + 2}", values, EpisodeRow, strict=False)
    if row.episode != at:
        raise ValueError(f"{path}, line {at + 2}: episode is {row.episode}, expected {at}")
    return row


def _convert(path: Path | str, value: Any, kind: type[T], strict: bool = True) -> T:
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise ValueError(one_line(f"{path}{_describe(value, str(error))}", LINE)) from None


def _describe(document: Any, message: str) -> str:
    """Says which field of a document is at fault, what it is, and what was expected."""
    reason, _, place = message.partition(" - at ")
    steps = re.findall(r"\.(\w+)|\[(\d+)\]", place)
    reason = reason.replace("`", "")
    if missing := re.fullmatch(r"Object missing required field (\w+)", reason):
        within = f" in {place.strip('`').removeprefix('$.')}" if steps else ""
        return f" lacks {missing[1]}{within}: it is not what a search wrote"
    for name, number in steps:
        document = document[int(number)] if number else document[name]
    name = place.strip("`").removeprefix("$.")
    if reason[:1].islower():  # of a record's own check, which names the field
        return f": {name}: {reason}" if steps else f": {reason}"
    if reason.startswith("Invalid enum value") and name.endswith("bits"):
        reason = "expected 1 to 8, or 32 for what is left in floating point"
    elif reason.startswith("Invalid enum value"):
        reason = "which is none of its values"
    if not place or "[...]" in place or "key" in place:
        return f" is {quote(document)}, {reason[0].lower()}{reason[1:]}"
    return f": {name} is {quote(document)}, {reason[0].lower()}{reason[1:]}"
