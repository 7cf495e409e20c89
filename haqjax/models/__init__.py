"""Networks to search: MobileNets and residual networks in Flax NNX, used as pure functions."""

from haqjax.models.equalisation import equalise
from haqjax.models.network import MODELS, Network, build, count_learned, outline
from haqjax.models.pretrained import Pretrained, load_pretrained
from haqjax.models.restore import restore_batchnorm
from haqjax.models.sources import is_pretrained_source
from haqjax.tracing.parameters import check_params

__all__ = [
    "MODELS",
    "Network",
    "Pretrained",
    "build",
    "check_params",
    "count_learned",
    "equalise",
    "is_pretrained_source",
    "load_pretrained",
    "outline",
    "restore_batchnorm",
]
