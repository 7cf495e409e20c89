"""Layers of a JAX function: found in its program, and run with a hook at each."""

from haqjax.tracing.hooks import map_weights, with_hook, with_records
from haqjax.tracing.layer_table import layers

__all__ = ["layers", "map_weights", "with_hook", "with_records"]
