"""Sources of pretrained weights: files on this disk, or fetched from the Hugging Face hub."""

from pathlib import Path

import numpy as np

HUBS = ("timm:", "hf:")
DEFAULT_FILE = "model.safetensors"
TIMM_TAGS = {  # of the weights that timm 1.0 takes where a name has no tag
    "resnet50": "a1_in1k",
    "mobilenetv1_100": "ra4_e3600_r224_in1k",
    "mobilenetv2_100": "ra_in1k",
}
PICKLES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar", ".pkl")  # written by PyTorch


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
            f'{source!r} is a pickle, which can run any code: convert it once with python -c "import torch; '
            f"from safetensors.torch import save_file; w = torch.load({source!r}, 'cpu', weights_only=True); "
            f"save_file(w.get('state_dict', w), {str(path.with_suffix('.safetensors'))!r})\""
        )
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"there are no weights at {source!r}: give a .safetensors file, timm:NAME or hf:OWNER/REPO")
    return path


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a `.safetensors` file by name.

    Raises:
      ValueError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read {str(path)!r} as safetensors: {error}") from error


def _repository(source: str, kind: str, rest: str) -> tuple[str, str]:
    owner, _, path = rest.partition("/") if kind == "hf" else ("timm", "/", rest)
    name, _, file = path.partition("/")
    if not owner or not name:
        raise ValueError(
            f"{source!r} names no weights: write timm:NAME, hf:OWNER/REPOSITORY or hf:OWNER/REPOSITORY/FILE"
        )
    tag = f".{TIMM_TAGS[name]}" if kind == "timm" and name in TIMM_TAGS else ""
    return f"{owner}/{name}{tag}", file or DEFAULT_FILE


def _fetch(repository: str, file: str) -> Path:
    import huggingface_hub  # slow to import, hence not above

    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:  # of the hub, of HTTP, of sockets: dozens of unrelated kinds
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"
        raise ValueError(
            f"cannot fetch {file!r} of {repository!r} from the Hugging Face hub: {reason}; fetch it elsewhere "
            "and give the file's path"
        ) from error
