"""Figures for papers, drawn by matplotlib; `haqjax.report.interactive` draws the same for a screen.

`layers`, `roofline` and `search` have a file of the same name there, with `..._chart` for each `..._figure`.
"""
