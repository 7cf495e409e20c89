"""Does a run that is killed again and again end as one that was left alone, to the byte?

    python tests/kills.py OUT                                 # 20 kills of each kind of run, about an hour
    python tests/kills.py OUT --kinds ilp,finetune --kills 3

Each kind is run once as a whole by the command line. Then copies of it are killed with SIGKILL at random moments (of a
seed), and gone on with, until so many kills were made; every copy goes on to its end. Its result files, the last state
of its search, and its fine-tuned weights must be those of the whole one. Prints a table, and writes OUT/kills.json;
the exit status is 1 where something differs.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
USUAL = ("--model", "resnet20", "--image-size", "8", "--rounding", "nearest", "--seed", "3")
SEARCHES: dict[str, tuple[str, ...]] = {
    "ilp": (*USUAL, "--budget", "0.6", "--search", "ilp", "--episodes", "240", "--patience", "0"),
    "haq": (*USUAL, "--budget", "0.6", "--search", "haq", "--episodes", "160"),
    "gradient": (*USUAL, "--budget", "0.6", "--search", "gradient", "--episodes", "240", "--patience", "0"),
    "front": (
        *USUAL,
        "--search",
        "ilp",
        "--episodes",
        "240",
        "--front",
        "latency",
        "--budget",
        "0.3,0.5,0.7",
        "--patience",
        "0",
    ),
}
TUNING = ("--epochs", "40", "--clip-rate", "0.001", "--seed", "3")
KINDS = (*SEARCHES, "finetune")
FILES = ("config.yaml", "policy.json", "episodes.csv", "front.json", "front.csv", "finetune.json")
ANYWHERE = 0.3  # of the kills are at any moment of a run, such as while it starts; the others once it has begun


@dataclasses.dataclass(frozen=True)
class Config:
    """Kill runs."""

    out: tyro.conf.Positional[str]
    """Folder to write; what it holds of the same kinds is made anew, trained networks are kept."""
    kinds: str = ",".join(KINDS)
    """Kinds of runs, with commas between."""
    kills: int = 20
    """Of each kind."""
    seed: int = 0
    """Of the moments."""


class Runs:
    """Runs of one kind: the commands to begin one and to go on with it, and what it leaves."""

    def __init__(self, kind: str, out: Path):
        self.kind, self.place, self.out = kind, out / kind, out
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        self.environment = os.environ | {"HAQJAX_CACHE": str(out / "cache"), "PYTHONPATH": str(ROOT)}

    def folder(self, name: str) -> Path:
        return self.place / name

    def make(self, name: str) -> None:
        """Makes what a run begins with: for a fine-tuning the finished search, else nothing."""
        if self.kind == "finetune":
            shutil.copytree(self.out / "searched", self.folder(name))

    def words(self, name: str) -> list[str]:
        """The command that begins the run, or goes on with it."""
        folder = self.folder(name)
        if self.kind == "finetune":
            return ["finetune", "--run", str(folder), *TUNING]
        if (folder / "config.yaml").exists():
            return ["search", "--resume", str(folder)]
        shutil.rmtree(folder, ignore_errors=True)  # killed between making the folder and writing the first file
        return ["search", *SEARCHES[self.kind], "--out", str(folder)]

    def start(self, name: str) -> subprocess.Popen:
        words = [sys.executable, "-m", "haqjax", *self.words(name)]
        with open(self.place / f"{name}.txt", "a") as said:
            return subprocess.Popen(words, env=self.environment, stdout=said, stderr=said, cwd=self.place)

    def has_begun(self, name: str, before: int) -> bool:
        return self.newest(name) > before

    def newest(self, name: str) -> int:
        """Number of the newest checkpoint; -1 where there is none yet."""
        folder = self.folder(name) / ("finetuning" if self.kind == "finetune" else "checkpoints")
        return max((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal()), default=-1)

    def is_finished(self, name: str) -> bool:
        return (self.folder(name) / ("finetune.json" if self.kind == "finetune" else "policy.json")).exists()

    def finish(self, name: str) -> None:
        if self.is_finished(name) and self.kind == "finetune":
            return
        if status := self.start(name).wait():
            raise RuntimeError(f"{self.folder(name)} ended with status {status}: see {self.place / f'{name}.txt'}")

    def differences(self, name: str) -> list[str]:
        """Names of what is not the same in the whole run and in this one."""
        whole, other = self.folder("whole"), self.folder(name)
        found = []
        for file in FILES:
            texts = [
                (folder / file).read_text().replace(str(folder), "RUN") if (folder / file).exists() else None
                for folder in (whole, other)
            ]
            found += [file] if texts[0] != texts[1] else []
        arrays = [self.arrays(folder) for folder in (whole, other)]
        same = len(arrays[0]) == len(arrays[1]) and all(map(np.array_equal, *arrays))
        left = [path.name for path in (other / ".lock", other / "finetuning") if path.exists()]
        return found + ([] if same else ["arrays"]) + left

    def arrays(self, folder: Path) -> list[np.ndarray]:
        """The last state of the search with its records, or the fine-tuned weights and ranges."""
        from haqjax.run.folder.documents import open_folder
        from haqjax.run.folder.journal import CHECKPOINTS, identity
        from haqjax.training.checkpoints import open_checkpoints
        from haqjax.training.weights import _read

        if self.kind == "finetune":
            parts = [_read(folder / "finetuned" / part) for part in ("params", "ranges")]
            return [part[name] for part in parts for name in sorted(part)]
        with open_checkpoints(folder / CHECKPOINTS, identity(open_folder(folder)), every=1) as checkpoints:
            found = checkpoints.newest()
        assert found is not None
        return [np.asarray(found[1]), *found[0]]


def run_whole(runs: Runs) -> tuple[float, float]:
    """Runs one to its end; returns its seconds, and those from its first checkpoint on."""
    runs.make("whole")
    started, process = time.monotonic(), runs.start("whole")
    begun = started
    while process.poll() is None:
        if begun == started and runs.has_begun("whole", -1):
            begun = time.monotonic()
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"see {runs.place / 'whole.txt'}")
    return time.monotonic() - started, time.monotonic() - begun


def kill_one(runs: Runs, name: str, seconds: tuple[float, float], moments: random.Random) -> dict[str, Any] | None:
    """Starts or goes on with a run and kills it at a random moment; None where it ended before that."""
    before, process, started = runs.newest(name), runs.start(name), time.monotonic()
    anywhere = moments.random() < ANYWHERE
    while not anywhere and process.poll() is None and not runs.has_begun(name, before):
        time.sleep(0.02)
    time.sleep(moments.uniform(0, seconds[0] if anywhere else seconds[1] / 4))
    if process.poll() is not None:
        if process.returncode:
            raise RuntimeError(f"{runs.folder(name)}: status {process.returncode}, see {runs.place / f'{name}.txt'}")
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return {"run": name, "seconds": round(time.monotonic() - started, 2), "newest": runs.newest(name)}


def kill_kind(kind: str, config: Config) -> dict[str, Any]:
    """Kills runs of one kind, and compares each with the whole one."""
    runs, moments = Runs(kind, Path(config.out).resolve()), random.Random(f"{config.seed} {kind}")
    seconds = run_whole(runs)
    kills: list[dict[str, Any]] = []
    verdicts: dict[str, list[str]] = {}
    while len(kills) < config.kills:
        name = f"killed{len(verdicts)}"
        runs.make(name)
        while len(kills) < config.kills and not runs.is_finished(name):
            if (kill := kill_one(runs, name, seconds, moments)) is not None:
                kills.append(kill)
        runs.finish(name)
        verdicts[name] = runs.differences(name)
    return {"seconds": seconds, "kills": kills, "runs": len(verdicts), "different": verdicts}


def main(config: Config) -> None:
    out, kinds = Path(config.out).resolve(), config.kinds.split(",")
    out.mkdir(parents=True, exist_ok=True)
    if unknown := sorted(set(kinds) - set(KINDS)):
        sys.exit(f"unknown kind {unknown[0]!r}: there are {', '.join(KINDS)}")
    if "finetune" in kinds and not (out / "searched" / "policy.json").exists():
        shutil.rmtree(out / "searched", ignore_errors=True)
        words = [
            "search",
            *USUAL,
            "--budget",
            "0.6",
            "--search",
            "ilp",
            "--episodes",
            "24",
            "--out",
            str(out / "searched"),
        ]
        environment = os.environ | {"HAQJAX_CACHE": str(out / "cache"), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "haqjax", *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    found = {}
    print(f"{'kind':10} {'seconds':>8} {'kills':>6} {'runs':>5}  result")
    for kind in kinds:
        found[kind] = kill_kind(kind, config)
        bad = {name: names for name, names in found[kind]["different"].items() if names}
        row = (round(found[kind]["seconds"][0]), len(found[kind]["kills"]), found[kind]["runs"])
        print(f"{kind:10} {row[0]:8} {row[1]:6} {row[2]:5}  {bad or 'identical'}", flush=True)
        (out / "kills.json").write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(any(any(one["different"].values()) for one in found.values()))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
