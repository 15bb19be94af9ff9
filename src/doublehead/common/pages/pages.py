"""Pages that are one file: a template extends `base.html`, and pictures travel inside as data URIs."""

from __future__ import annotations

import base64
import io
import math
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

import doublehead

if TYPE_CHECKING:
    from PIL import Image

COLOURS = Path(__file__).with_name("colours.css")
"""Served by the server's page too."""


def render(template: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: its path inside the package, such as "data/page.html". Values are escaped; templates may use the
            filters `count` (1234 -> 1,234), `percent` (0.5 -> 50.0) and `number` (digits after the point).
        values: what the template shows.

    Returns:
        HTML that refers to no other file.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"count": _count, "percent": _percent, "number": _number}
    return environment.get_template(template).render(values | {"version": doublehead.__version__})


def jpeg(image: Image.Image) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return data_uri(file.getvalue(), "image/jpeg")


def data_uri(content: bytes, media_type: str) -> str:
    """A file's content as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _read(path: str) -> str:
    return files("doublehead").joinpath(path).read_text(encoding="utf-8")


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
