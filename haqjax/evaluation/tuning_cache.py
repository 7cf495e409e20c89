"""Clock and cache of tunings: one JSON file a question, which costs no more than to measure again where it is lost."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from haqjax.files import write_json

CPU_INFO = Path("/proc/cpuinfo")  # of Linux


def least_seconds(run: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Times something that is compiled already: the least of several runs."""
    seconds = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(run())
        seconds.append(clock() - start)
    return min(seconds)


def name_device() -> str:
    """Names the device in use; a CPU by its model and features, by which the fastest arithmetic differs."""
    device = jax.devices()[0]
    if device.platform != "cpu" or not CPU_INFO.is_file():
        return device.device_kind
    lines = CPU_INFO.read_text(errors="replace").splitlines()
    text = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    return f"cpu {hashlib.sha256(''.join(text).encode()).hexdigest()[:8]}"


def cache_path(cache: str | Path | None, folder: str, identity: object) -> Path | None:
    """Returns the place of a file in the cache: answers to the same question on the same device have the same one."""
    if cache is None:
        return None
    text = repr((jax.__version__, jax.default_backend(), name_device(), identity))
    return Path(cache) / folder / f"{jax.default_backend()}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def recall(path: Path | None) -> Mapping[str, Any]:
    """Reads what was remembered; nothing where there is no such file, or none that can be read."""
    try:
        found = {} if path is None else json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(path: Path | None, record: Mapping[str, Any]) -> None:
    """Writes a record; where that cannot be, the next run measures again."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**record, "device": name_device()})
    except OSError:
        pass
