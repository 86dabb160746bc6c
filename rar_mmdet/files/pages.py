"""Pages from templates of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["render_page"]


def render_page(template: Path, **values: Any) -> str:
    """The text of a page. Values are escaped as text; one that the template names and nobody gives is an error.

    Args:
        template: a Jinja file.
        values: what it names.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template.name).render(**values)
