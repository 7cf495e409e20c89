"""Networks to search: MobileNets and residual networks in Flax NNX, used as pure functions."""

from haqjax.models.network import MODELS, Network, build, count_learned, outline

__all__ = ["MODELS", "Network", "build", "count_learned", "outline"]
