"""Downloads a set of TensorFlow Datasets once, so that it can be read without TensorFlow from then on."""

from pathlib import Path


def prepare(name: str, data_dir: str | Path | None = None) -> Path:
    """Downloads and writes a data set in the format that `load("tfds:NAME")` reads.

    This is the one place that needs TensorFlow and a network; `pip install 'haqjax[prepare]'` brings the former. From a
    shell: `python -c "import haqjax.data; haqjax.data.prepare('cifar10', 'data')"`.

    Args:
      name: its name in TensorFlow Datasets.
      data_dir: the folder to write into; None is the library's own.

    Returns:
      The folder of the set.

    Raises:
      ImportError: TensorFlow is not installed.
      ValueError: the library cannot prepare it; says why.
    """
    try:
        import tensorflow  # noqa: F401, slow to import and needed by the next line alone
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(f"preparing {name!r} needs TensorFlow: pip install 'haqjax[prepare]' ({error})") from error
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # the library raises a dozen unrelated kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"cannot prepare the data set {name!r}: {reason}") from error
    return Path(builder.data_dir)
