"""Settings of the documentation as web pages: `python -m sphinx -W -b html docs out/docs`."""

project = "ligo-convert"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "ligo-convert"
# Headings down to this level have an anchor, named as on GitHub.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["guide/clusters/*"]
