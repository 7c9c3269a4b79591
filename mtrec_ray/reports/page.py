"""HTML pages from the templates of `reports/page/`."""

from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(name: str, **values: Any) -> str:
    """A template with the style sheet of all pages."""
    loader = PackageLoader("mtrec_ray.reports", "page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = resources.files("mtrec_ray.reports").joinpath("page/style.css").read_text(encoding="utf-8")
    return environment.get_template(name).render(style=style, **values)
