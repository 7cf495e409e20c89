"""What holds in every test: four lines of law, and where external data is."""

from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]

# The first law, that a warning is an error, is in pyproject.toml.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_compilation_cache_max_size", 2**30)  # bytes; with a limit JAX locks the folder
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of images, weights and reference tables that are not part of the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the external data in {folder}")
    return folder
