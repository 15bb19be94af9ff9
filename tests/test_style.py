"""README, docs and help texts use the words of the field: the habits that we gave up do not come back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from doublehead import cli
from doublehead.config import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
HABITS = (
    r"go(es)? on with\b",
    r"goes on (from|where|after|until)\b",
    r"(is|are|was) not to be had",
    r"to be had\b",
    r"what is none\b",
    r"\bby itself\b",
    r"\bat hand\b",
    r"\bbe it\b",
    r"\bmend(s|ed|ing)?\b",
    r"\bpassed over\b",
    r"\bshared out\b",
    r"\bturned away\b",
    r"\bstumbles? over\b",
    r"reads the figures with you",
    r"as if it had never been",
    r"stops nothing else",
    r"; else all\b",
    r"\bat most; else\b",
    r"an hour in which",
)
"""What style.md tells us to write otherwise."""

HABIT = re.compile("|".join(HABITS), re.IGNORECASE)


def prose(page: Path) -> str:
    """A page without its code, on one line."""
    return " ".join(re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL).split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages(page):
    assert not [match[0] for match in HABIT.finditer(prose(page))]


SOURCES = [
    ROOT / "CHANGELOG.md",
    *(path for kind in ("py", "html", "js", "md") for path in sorted((ROOT / "src").rglob(f"*.{kind}"))),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "studies").glob("*.[py]*")),
    *sorted((ROOT / "examples").rglob("*.ipynb")),
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)),
]


def test_code_comments_and_messages():
    """Docstrings, comments, messages and templates: all that a user or a contributor reads beside the pages."""
    found = [(path.name, match[0]) for path in SOURCES for match in HABIT.finditer(path.read_text())]
    assert len(SOURCES) > 150
    assert not found


def help_texts() -> Iterator[str]:
    for name, command in typer.main.get_command(cli.app).commands.items():
        yield f"{name}: {command.help}"
        yield from (f"{name} {one.name}: {one.help}" for one in command.params if getattr(one, "help", None))


def descriptions(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from ([schema["description"]] if isinstance(schema.get("description"), str) else [])
        for value in schema.values():
            yield from descriptions(value)


def test_help_texts():
    texts = list(help_texts())
    assert len(texts) > 100
    assert not [text for text in texts if HABIT.search(text)]
    assert not [text for text in texts if len(text.partition(": ")[2]) > 140]  # one line, or little more


def test_descriptions_of_settings():
    texts = list(descriptions(Config.model_json_schema()))
    assert len(texts) > 100
    assert not [text for text in texts if HABIT.search(text)]
