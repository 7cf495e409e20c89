"""Figures that answer the pointer, by plotly."""
