"""Layers of a JAX function: found in its program, and run with a hook at each."""

from haqjax.tracing.hooks import layers, map_weights, with_hook, with_records

__all__ = ["layers", "map_weights", "with_hook", "with_records"]
