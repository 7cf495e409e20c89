"""Layouts: names and shapes that others give the weights of the networks here."""

from haqjax.models.layouts.layout import Layout, Source, Tensor, Unit
from haqjax.models.layouts.mobilenet_v1 import MOBILENET_V1
from haqjax.models.layouts.mobilenet_v2 import MOBILENET_V2
from haqjax.models.layouts.residual import RESIDUAL

__all__ = ["LAYOUTS", "Layout", "Source", "Tensor", "Unit"]

LAYOUTS = (*RESIDUAL, *MOBILENET_V1, *MOBILENET_V2)
