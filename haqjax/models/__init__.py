"""Networks to search: MobileNets and residual networks in Flax NNX, used as pure functions."""

from haqjax.models.equalisation import equalise
from haqjax.models.network import MODELS, Network, build, count_learned, outline
from haqjax.models.own import AnyNetwork, OwnNetwork, is_own, load_own, own_data
from haqjax.models.pretrained import Pretrained, load_pretrained
from haqjax.models.restore import restore_batchnorm
from haqjax.models.sources import is_pretrained_source
from haqjax.tracing.parameters import check_params

__all__ = [
    "MODELS",
    "AnyNetwork",
    "Network",
    "OwnNetwork",
    "Pretrained",
    "build",
    "check_params",
    "count_learned",
    "equalise",
    "is_own",
    "is_pretrained_source",
    "load_own",
    "load_pretrained",
    "outline",
    "own_data",
    "restore_batchnorm",
]
