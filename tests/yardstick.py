"""Does a change of the code leave every result alone, to the byte?

    python tests/yardstick.py record before --checkout ../haqjax-before   # the code of another checkout
    python tests/yardstick.py record after
    python tests/yardstick.py compare before after

Six short searches, the fine-tuning of one of their policies, and the cost tables of all machines, by the command line,
which is the same in both. Float networks are trained once and kept in OUT/cache; two records that share `--cache`
compare all but that training. What must be equal holds on one machine with one version of JAX: elsewhere last bits
differ.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parents[1]
SEED = ("--seed", "3")
RESNET, MOBILENET = ("--model", "resnet20", "--hw"), ("--model", "mobilenet_v2", "--hw")
SEARCHES: dict[str, tuple[str, ...]] = {
    "ilp": (*MOBILENET, "edge", "--search", "ilp", "--episodes", "24", "--rounding", "nearest"),
    "haq": (*RESNET, "cloud", "--search", "haq", "--episodes", "24"),
    "gradient": (*RESNET, "edge", "--search", "gradient", "--episodes", "8", "--metric", "energy"),
    "front": (*RESNET, "cloud", "--search", "ilp", "--episodes", "16", "--front", "latency", "--budget", "0.3,0.5"),
    "drop": (*MOBILENET, "edge", "--search", "ilp", "--episodes", "24", "--max-drop", "1", "--rounding", "nearest"),
    "size": (*RESNET, "edge", "--search", "evolution", "--episodes", "24", "--metric", "size", "--budget", "0.4"),
}
TUNED = "haq"  # the search whose policy is fine-tuned
KEPT = ("policy.json", "episodes.csv", "front.json", "front.csv", "finetune.json")
RENAMED: dict[str, str] = {"gain": "reward"}  # names of fields, before -> after


@dataclasses.dataclass(frozen=True)
class Record:
    """Run everything and keep what must stay equal."""

    out: tyro.conf.Positional[str]
    """Folder to write; what it holds of the same names is made anew."""
    checkout: str = str(ROOT)
    """The code to run, with its own .venv where it has one."""
    cache: str | None = None
    """Folder of trained networks. Default: OUT/cache."""
    only: tuple[str, ...] = ()
    """Names of searches; `tables` for the tables. Default: all."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare two records, file by file."""

    before: tyro.conf.Positional[str]
    after: tyro.conf.Positional[str]


def record(config: Record) -> None:
    """Runs the searches, the fine-tuning, and the tables."""
    out, checkout = Path(config.out).resolve(), Path(config.checkout).resolve()
    for name in config.only or (".",):
        for part in (out / name, out / "runs" / name):
            shutil.rmtree(part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"HAQJAX_CACHE": str(Path(config.cache or out / "cache").resolve())}
    python = checkout / ".venv/bin/python"
    start = [str(python) if python.exists() else sys.executable, "-m", "haqjax"]

    def run(*words: str) -> None:
        subprocess.run([*start, *words], cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)

    for name, words in SEARCHES.items():
        if config.only and name not in config.only:
            continue
        folder = out / "runs" / name
        run("search", *words, *SEED, "--out", str(folder))
        if name == TUNED:
            run("finetune", "--run", str(folder), "--epochs", "1", "--clip-rate", "0.001", "--seed", "3")
        (out / name).mkdir()
        for file in KEPT:
            if (folder / file).is_file():
                text = (folder / file).read_text().replace(str(folder), name)  # the place of the run
                (out / name / file).write_text(text)
        print(f"{name}: {_digest(out / name)}", flush=True)
    if not config.only or "tables" in config.only:
        (out / "tables").mkdir()
        for machine in sorted((checkout / "haqjax/hardware/machines").glob("*.yaml")):
            run("table", "--hw", machine.stem, "--out", str(out / "tables" / f"{machine.stem}.csv"))
        print(f"tables: {_digest(out / 'tables')}", flush=True)


def compare(config: Compare) -> None:
    """Prints a line for each file; ends with status 1 where one differs."""
    before, after = Path(config.before), Path(config.after)
    names = sorted({str(path.relative_to(root)) for root in (before, after) for path in _files(root)})
    verdicts = {name: _verdict(before / name, after / name) for name in names}
    print("\n".join(f"{verdict:>24}  {name}" for name, verdict in verdicts.items()))
    sys.exit(any(verdict not in ("equal", "equal but for names") for verdict in verdicts.values()) or not names)


def _files(root: Path) -> list[Path]:
    return [path for name in (*SEARCHES, "tables") for path in (root / name).glob("*")]


def _verdict(before: Path, after: Path) -> str:
    if not before.is_file() or not after.is_file():
        return "missing"
    old, new = before.read_bytes(), after.read_bytes()
    if old == new:
        return "equal"
    if before.suffix == ".json" and _rename(json.loads(old)) == json.loads(new):
        return "equal but for names"
    text = old.decode()
    for name, other in RENAMED.items():
        text = text.replace(name, other)
    return "equal but for names" if before.suffix == ".csv" and text == new.decode() else "DIFFERENT"


def _rename(value: Any) -> Any:
    if isinstance(value, dict):
        return {RENAMED.get(key, key): _rename(part) for key, part in value.items()}
    return [_rename(part) for part in value] if isinstance(value, list) else value


def _digest(folder: Path) -> str:
    parts = [path.name.encode() + path.read_bytes() for path in sorted(folder.iterdir())]
    return f"{len(parts)} files, {hashlib.sha256(b''.join(parts)).hexdigest()[:16]}"


if __name__ == "__main__":
    command = tyro.extras.subcommand_cli_from_dict({"record": Record, "compare": Compare}, description=__doc__)
    (record if isinstance(command, Record) else compare)(command)
