"""Sphinx settings of the documentation site; `docs/site/build.py` writes the sources that they are for."""

import monai_vit3d

project = "monai_vit3d"
author = "The monai_vit3d developers"
project_copyright = f"2026, {author}"
release = version = monai_vit3d.__version__
html_title = f"{project} {release}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"  # notebooks are shown with the outputs that they were committed with
nb_merge_streams = True
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
