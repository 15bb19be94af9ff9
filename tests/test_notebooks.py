"""The notebooks in examples/ run from top to bottom, and are kept without outputs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from small import SMALL

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))
TINY = f"""
IMAGES = {{"train": 8, "val": 2, "test": 2}}
SETTINGS = {SMALL | {"train.steps": 4, "model.roi.score_threshold": 0.01}!r}
OBJECTS, WINDOWS = 4, 20
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not [cell for cell in cells if cell.outputs or cell.execution_count]


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_with_tiny_settings(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    book = nbformat.read(path, as_version=4)
    tagged = {tag: cell for cell in book.cells for tag in cell.metadata.get("tags", ())}
    assert "%pip install" in tagged["install"].source
    tagged["install"].source = ""
    tagged["parameters"].source += TINY
    NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "Traceback" not in nbformat.writes(book)  # widgets show theirs and go on
