"""How the pages are built by `make docs`, warnings being errors; `extensions` has what is inserted. Nothing runs."""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

import meanfield  # noqa: E402

project, author, copyright = "meanfield", "meanfield developers", "2026, meanfield developers"
version = release = meanfield.__version__
html_title = f"meanfield {release}"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
templates_path: list[str] = []
exclude_patterns = ["extensions", "static"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "pages", "docstrings"]

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
suppress_warnings = ["myst.header"]  # headings of the sources that pages are made of

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types and shapes stand in the docstrings
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100

# MathJax from a package, so that formulas show without a network: one file, with its glyphs in it.
_found = importlib.util.find_spec("sphinx-mathjax-offline")
assert _found is not None and _found.submodule_search_locations is not None
html_static_path.append(str(Path(_found.submodule_search_locations[0], "static", "mathjax", "tex-svg.js")))
mathjax_path = "tex-svg.js"
