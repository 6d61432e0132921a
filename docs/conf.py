"""Settings of the site, which ``make docs`` builds with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

import fewshot_blo

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "fewshot_blo"
author = "the authors of fewshot_blo"
release = version = fewshot_blo.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "command_help",
    "linked_names",
    "readable_api",
]
exclude_patterns = ["_build"]

# Notebooks are shown with the outputs they are kept with: `make examples` runs them.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # Signatures have them.

# The site is built offline, without the inventories of other projects.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|matplotlib|PIL)\..*"),
    (r"py:.*", r"(collections|dataclasses|datetime|pathlib|typing)\..*"),
    (r"py:class", r"Tensor|NDArray|Path|InitVar|Image\.Image"),  # The same, by their last names.
    (r"py:class", r"fewshot_blo\..*\.(Own|Item|T)"),  # Type variables have no entry.
]

html_theme = "furo"
html_title = f"fewshot_blo {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False


def _on_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to the page of benchmarks, which stands beside its scripts, lead to it on the site."""
    source[0] = source[0].replace("../../benchmarks/README.md", "../results/benchmarks.md")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _on_the_site)
