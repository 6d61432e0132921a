"""Settings of the site, which ``make docs`` builds with warnings as errors."""

from __future__ import annotations

import fewshot_blo

project = "fewshot_blo"
author = "the authors of fewshot_blo"
release = version = fewshot_blo.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

# Notebooks are shown with the outputs they are kept with: `make examples` runs them.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"fewshot_blo {release}"
html_static_path = ["_static"]
