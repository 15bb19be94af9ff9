"""The documentation site builds without a warning, and names settings that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from doublehead.training.recipes import resolve

ROOT = Path(__file__).parents[1]
KEY = re.compile(r"`(?:--set '?)?((?:train|data|model)(?:\.[a-z_]+)+)(?![\w.(])")
FILES = {"train.json", "data.yaml"}  # look like keys and are none


class Addresses(HTMLParser):
    """What a page loads as it opens."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "link") and values.get("rel") != "canonical":
            self.found += [values.get("src") or values.get("href") or ""]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_has_the_public_api(site):
    import doublehead

    page = (site / "api" / "index.html").read_text()
    for name in doublehead.__all__:
        assert re.search(rf'id="doublehead\.[\w.]+\.{name}"', page), name


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        addresses = Addresses()
        addresses.feed(page.read_text())
        assert not [address for address in addresses.found if "//" in address], page


def known(values: Any, path: list[str]) -> bool:
    for name in path:
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


@pytest.mark.parametrize("page", [ROOT / "docs" / f"{name}.md" for name in ("faq", "migration", "index")])
def test_settings_named_in_the_docs_exist(page):
    config = resolve("double-head-r50").model_dump()
    config["data"]["augment"] = {"short_sides": None}  # keys for its steps
    keys = set(KEY.findall(page.read_text())) - FILES
    assert not [key for key in keys if not known(config, key.split("."))]
