"""The HTML templates of reports; every value is escaped where it is filled in."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_environment = Environment(
    loader=PackageLoader("fedgmr_hpc.reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(name: str, **values: Any) -> str:
    """Fill in the template `name` of this folder."""
    return _environment.get_template(name).render(**values)
