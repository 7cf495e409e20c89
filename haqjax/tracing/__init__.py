"""From a JAX function to its layers: where they are in its program, and an interpreter with a hook at each."""
