"""Reports: figures in two forms (static, interactive), tables, and a page of both."""

from haqjax.report.static.layers import bits_figure
from haqjax.report.static.search import search_figure
from haqjax.report.static.style import save
from haqjax.report.tables import Row, as_text, comparison_table, standard_error

__all__ = ["Row", "as_text", "bits_figure", "comparison_table", "save", "search_figure", "standard_error"]
