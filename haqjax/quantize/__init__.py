"""Quantisers: linear fake quantisation, its calibration, and the quantised forward pass."""

from haqjax.quantize.calibrate import calibrate as calibrate
from haqjax.quantize.forward import quantize as quantize
