"""Figures for a screen, drawn by plotly; `haqjax.report.static` draws the same for papers.

`layers`, `roofline` and `search` have a file of the same name there, with `..._figure` for each `..._chart`.
"""
