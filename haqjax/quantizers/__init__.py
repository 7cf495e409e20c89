"""Quantisers: linear fake quantisation, its calibration, and the quantised forward pass."""

from haqjax.quantizers.calibration import calibrate
from haqjax.quantizers.fake_quantize import quantize

__all__ = ["calibrate", "quantize"]
