"""How Sphinx builds the site: `make docs`, without a network, warnings are errors."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import autoapi

project = "haqjax"
author = "the haqjax authors"
version = release = importlib.metadata.version("haqjax")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
source_suffix = {".md": "markdown"}
exclude_patterns = ["search.md"]  # it is in searches.md: Sphinx has a page "search" of its own
nitpicky = True  # a function that is named must exist
nitpick_ignore_regex = [("py:class", ".*")]  # the types of other libraries are not documented here
suppress_warnings = ["ref.python"]  # records of one name in two modules, such as Work

myst_heading_anchors = 3  # so that a page can point at a heading of another

# `autoapi.py` writes signatures as they stand in the source, so autodoc has no types to add.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_use_rtype = False
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"haqjax {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False


def setup(app):
    """Connects what turns docstrings and names into pages."""
    autoapi.connect(app)
