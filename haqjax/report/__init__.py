"""What a person looks at: figures, tables, and a page of both."""

from haqjax.report.figures import bits_figure, save
from haqjax.report.progress import search_figure
from haqjax.report.tables import Row, as_text, comparison_table, standard_error

__all__ = ["Row", "as_text", "bits_figure", "comparison_table", "save", "search_figure", "standard_error"]
