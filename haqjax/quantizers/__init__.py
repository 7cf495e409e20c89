"""Quantisers: linear fake quantisation, its calibration, and the quantised forward pass."""

from haqjax.quantizers.calibration import calibrate
from haqjax.quantizers.integer_layers import quantize

__all__ = ["calibrate", "quantize"]
