"""HTML pages from templates, each one file with everything in it: no script, style or picture comes from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The page of a template of this folder. All texts are escaped; a name that the template needs must be given."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["as_json"] = lambda value: json.dumps(value, indent=1)
    return environment.get_template(template).render(**values)
