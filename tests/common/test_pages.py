"""The look that HTML pages share."""

import math
import re

import jinja2
import pytest

from doublehead.common.pages import pages
from doublehead.data.inspection import inspect
from doublehead.data.page import write_page


def style(html: str) -> str:
    (found,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    return found


@pytest.fixture
def template(monkeypatch):
    """Renders text as if it were a template of the package."""
    read = pages._read

    def render(text, **values):
        monkeypatch.setattr(pages, "_read", lambda path: text if path == "text.html" else read(path))
        return pages.render("text.html", **values)

    return render


def test_pages_are_light_and_dark_and_can_be_printed_and_read_on_a_phone():
    html = pages.render("common/pages/base.html")
    for words in ("@media screen and (prefers-color-scheme: dark)", "@media print", "(max-width:"):
        assert words in style(html)
    assert 'name="viewport"' in html


def test_the_page_of_check_has_the_look_of_all_pages(dataset, tmp_path):
    page = write_page(inspect(dataset), tmp_path)
    assert style(page.read_text()) == style(pages.render("common/pages/base.html"))


def test_a_page_has_every_colour_that_its_style_names():
    css = style(pages.render("common/pages/base.html"))
    assert set(re.findall(r"var\((--[\w-]+)\)", css)) <= set(re.findall(r"(--[\w-]+):", css))


def test_values_are_escaped_and_unknown_ones_are_an_error(template):
    text = '{% extends "common/pages/base.html" %}{% block main %}{{ name }}{% endblock %}'
    assert "&lt;b&gt;" in template(text, name="<b>")
    with pytest.raises(jinja2.UndefinedError, match="name"):
        template(text)


def test_numbers(template):
    text = "{{ a | count }} {{ b | percent }} {{ b | number(1) }} {{ c | number }} {{ c | percent }}"
    assert template(text, a=1234567, b=0.25, c=math.nan) == "1,234,567 25.0 0.2 - -"
