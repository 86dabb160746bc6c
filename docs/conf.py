"""The site of the pages in this folder: `make docs`. Sphinx, MyST for Markdown, the theme furo; nothing from elsewhere.

The pages are also read where the code is hosted, so they link to each other, and to files of the project, by path.
"""

import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rar_mmdet import __version__

project = "rar_mmdet"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["images"]
html_theme = "furo"
html_title = f"rar_mmdet {__version__}"
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 4  # headings have the addresses that code hosts give them
pygments_style, pygments_dark_style = "sphinx", "monokai"

# Docstrings: Google style, types in annotations alone, names between single backticks.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "imported-members": True}

# Files of the project that the site shows as pages of its own, because its pages link to them.
SHOWN = {
    "README.md": "index.md",
    "demo/README.md": "project/demo.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}
LINK = re.compile(r"\]\((?:\.\./)*(" + "|".join(map(re.escape, SHOWN)) + r")(?=[#)])")
FIELD = re.compile(r"^    (\w+): .*?  # (.+)$", re.M)

MARKUP = re.compile(r"([|*])")  # that comments do not mean as such


def link_to_pages(text: str, depth: int) -> str:
    """Links to these files as links to their pages; `depth`: folders between the linking page and this one."""
    return LINK.sub(lambda found: f"]({'../' * depth}{SHOWN[found[1]]}", text)


def add_fields(what, cls, lines: list[str]) -> None:
    """The comments beside the fields of a class, which tell shapes and units, as its attributes."""
    if what != "class" or any(line.startswith("Attributes:") for line in lines):
        return
    try:
        fields = FIELD.findall(inspect.getsource(cls))
    except (OSError, TypeError):  # made at run time
        return
    if fields:
        escaped = [f"    {name}: " + MARKUP.sub(r"\\\1", comment) for name, comment in fields]
        lines += ["", "Attributes:", *escaped, ""]


def setup(app) -> None:
    """What Sphinx calls."""

    def source_read(app, docname: str, content: list[str]) -> None:
        content[0] = link_to_pages(content[0], docname.count("/"))

    def include_read(app, path, docname: str, content: list[str]) -> None:
        content[0] = link_to_pages(content[0], docname.count("/"))

    def process_docstring(app, what, name, cls, options, lines: list[str]) -> None:
        add_fields(what, cls, lines)

    app.connect("source-read", source_read)
    app.connect("include-read", include_read)
    app.connect("autodoc-process-docstring", process_docstring, priority=100)  # before napoleon
