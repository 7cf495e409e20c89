"""Colours that a figure has in matplotlib as in plotly."""

INK = "#262626"
# Told apart by hue, by lightness and by hatching, so that neither colour blindness nor a grey print hides them.
KINDS = {"depthwise": "#f0a330", "pointwise (1×1)": "#23679e", "other": "#a9c1d6"}
HATCHED = "depthwise"
EVALUATED, BEST = "#8fb3d3", "#123a5e"  # policies: all of them, the best ones
UNIFORM = "#c8590a"  # policies with the same bits everywhere
