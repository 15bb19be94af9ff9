"""`doublehead check`: datasets with one fault each, of which `check` and `train` say the same."""

import json
from pathlib import Path

import pytest
from faults import FAULTS, Fault, sound, table

from doublehead.errors import DoubleheadError
from small import SMALL, flags

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
TINY = ("--model", "double-head-tiny", *flags(SMALL | {"train.steps": 1}))
READY = "the model is built here"


@pytest.fixture
def ready(monkeypatch):
    """Training that ends where it has looked at all data and builds its model."""

    def build(*_, **__):
        raise DoubleheadError(READY)

    monkeypatch.setattr("doublehead.training.loop.Detector", build)


def checked(command, root):
    file = root.parent / "found.json"
    outcome = command("check", root, "--json", file)
    return outcome, json.loads(file.read_text())


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: f"{row.format}: {row.what}")
def test_one_fault(row: Fault, tmp_path, command, ready):
    root = sound(row.format, tmp_path / "data")
    row.spoil(root)
    outcome, found = checked(command, root)
    said = command("train", root, *TINY, "-o", tmp_path / "run").sentence
    errors = [
        place["text"] for finding in found["findings"] if finding["level"] == "error" for place in finding["places"]
    ]
    warnings = {finding["kind"] for finding in found["findings"] if finding["level"] == "warning"}
    assert outcome.code == (1 if row.error else 0), outcome.err
    assert bool(errors) == row.error
    if row.error:
        assert any(row.says in text for text in errors), errors
    else:
        assert row.says in warnings
    if row.trains:
        assert said == READY
    else:
        assert row.says in said
        assert any(said.startswith(text) for text in errors), (said, errors)


@pytest.mark.parametrize("form", ["COCO", "VOC", "YOLO"])
def test_a_sound_dataset_has_no_findings_and_trains(form, tmp_path, command):
    root = sound(form, tmp_path / "data")
    outcome, found = checked(command, root)
    assert outcome.code == 0
    assert found["findings"] == []
    assert outcome.out == "no errors: this can be trained on; 0 warnings, which training can live with\n"
    assert [(split["name"], split["images"]) for split in found["splits"]] == [("train", 10), ("val", 4)]
    assert [(c["name"], c["boxes"]) for c in found["splits"][0]["classes"]] == [("red", 30), ("white", 10)]
    assert command("train", root, *TINY, "-o", tmp_path / "run").code == 0


def test_the_corpus_is_what_the_docs_show():
    assert len(FAULTS) >= 40
    assert len({(row.format, row.what) for row in FAULTS}) == len(FAULTS)
    assert table() in DOCS.read_text(), "put the output of `python tests/data/faults.py` into docs/reliability.md"
