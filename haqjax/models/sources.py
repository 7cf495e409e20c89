"""Sources of pretrained weights: files on this disk, or fetched from the Hugging Face hub."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from haqjax.reading import check_regular, one_line, quote

HUBS = ("timm:", "hf:")
DEFAULT_FILE = "model.safetensors"
TIMM_TAGS = {  # of the weights that timm 1.0 takes where a name has no tag
    "resnet50": "a1_in1k",
    "mobilenetv1_100": "ra4_e3600_r224_in1k",
    "mobilenetv2_100": "ra_in1k",
}
PICKLES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar", ".pkl")  # written by PyTorch
CONVERTER = (
    "import sys, torch; from safetensors.torch import save_file; "
    'w = torch.load(sys.argv[1], "cpu", weights_only=True); save_file(w.get("state_dict", w), sys.argv[2])'
)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
MOST_BYTES, MOST_HEADER = 1 << 36, 1 << 22  # the header of ResNet-50 has 20 kB
LONG = 80  # characters of a name


def is_pretrained_source(text: str) -> bool:
    """Returns True for sources of `load_pretrained`, False for folders of `haqjax.training.load_params`.

    >>> [is_pretrained_source(text) for text in ("timm:resnet50.a1_in1k", "a/b.safetensors", "a/b.pth", "weights/mine")]
    [True, True, True, False]
    """
    return text.startswith(HUBS) or (Path(text).suffix in (".safetensors", *PICKLES) and not Path(text).is_dir())


def is_timm(source: str) -> bool:
    """Returns True for timm's repositories."""
    return source.startswith(("timm:", "hf:timm/"))


def find_file(source: str) -> Path:
    """Finds the file of a source on this disk, after fetching it where it is on a hub.

    Raises:
      ValueError: there is none, it cannot be fetched, or it is no `.safetensors` file.
    """
    kind, colon, rest = source.partition(":")
    if kind + colon in HUBS:
        return _fetch(*_repository(source, kind, rest))
    path = Path(source)
    if path.suffix in PICKLES:
        raise ValueError(
            f"{quote(source)} is a pickle, which can run any code: convert it once with {_converter(source)}"
        )
    if path.suffix != ".safetensors" or not path.exists() or path.is_dir():
        raise ValueError(
            f"there are no weights at {quote(source)}: give a .safetensors file, timm:NAME or hf:OWNER/REPO"
        )
    return path


def _converter(source: str) -> str:
    """Writes the command that converts a pickle, for a shell, whatever the name of the file."""
    names = (source, str(Path(source).with_suffix(".safetensors")))
    if not source.isprintable() or len(source) > LONG:
        names = ("FILE.pt", "FILE.safetensors")
    return shlex.join(["python", "-c", CONVERTER, *names])


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a `.safetensors` file by name.

    Raises:
      ValueError: it is no such file, or not whole; its header is of no numbers that are read here.
    """
    from safetensors.numpy import load_file

    try:
        check_regular(path, MOST_BYTES)
        _check_header(path)
        return load_file(path)
    except Exception as error:  # of the library, of its bindings, of NumPy
        raise ValueError(f"cannot read {quote(str(path))} as safetensors: {one_line(error, 250)}") from error


def _check_header(path: Path) -> None:
    """Checks the header of a file before anything is made of it: safetensors itself takes 100 MB, and names twice."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(MOST_HEADER, path.stat().st_size - 8):
            raise ValueError(f"its header is of {size} bytes, in a file of {path.stat().st_size}")
        tensors = json.loads(file.read(size), object_pairs_hook=_without_repeats)
    if not isinstance(tensors, dict):
        raise ValueError("its header is no list of tensors by name")
    for name, about in tensors.items():
        if name == "__metadata__":
            continue
        if not isinstance(about, dict) or about.get("dtype") not in DTYPES:
            kind = quote(about.get("dtype")) if isinstance(about, dict) else "none"
            raise ValueError(f"the type of {quote(name)} is {kind}, not one of {', '.join(DTYPES)}")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has two entries {quote(next(name for name in found if names.count(name) > 1))}")
    return found


def _repository(source: str, kind: str, rest: str) -> tuple[str, str]:
    owner, _, path = rest.partition("/") if kind == "hf" else ("timm", "/", rest)
    name, _, file = path.partition("/")
    if not owner or not name:
        raise ValueError(
            f"{quote(source)} names no weights: write timm:NAME, hf:OWNER/REPOSITORY or hf:OWNER/REPOSITORY/FILE"
        )
    tag = f".{TIMM_TAGS[name]}" if kind == "timm" and name in TIMM_TAGS else ""
    return f"{owner}/{name}{tag}", file or DEFAULT_FILE


def _fetch(repository: str, file: str) -> Path:
    import huggingface_hub  # slow to import, hence not above

    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:  # of the hub, of HTTP, of sockets: dozens of unrelated kinds
        said = one_line(str(error).strip().partition("\n")[0].rstrip("."), 150)
        reason = f"{type(error).__name__}: {said}"
        raise ValueError(
            f"cannot fetch {quote(file)} of {quote(repository)} from the Hugging Face hub: {reason}; fetch it "
            "elsewhere and give the file's path"
        ) from error
