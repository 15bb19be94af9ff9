"""`doublehead check`: datasets with one fault each, of which `check` and `train` say the same."""

import json
import re
from pathlib import Path

import pytest
from cases import labelimg_flat
from faults import FAULTS, Fault, add, edit, sound, table, without

from doublehead.common.errors import DoubleheadError
from small import SMALL, flags

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
TINY = ("--model", "double-head-tiny", *flags(SMALL | {"train.steps": 1}))
READY = "the model is built here"


@pytest.fixture
def ready(monkeypatch):
    """Training that ends where it has looked at all data and builds its model."""

    def build(*_, **__):
        raise DoubleheadError(READY)

    monkeypatch.setattr("doublehead.training.first_model.Detector", build)


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
    assert outcome.out == "no errors: this can be trained on; warnings: 0\n"
    assert [(split["name"], split["images"]) for split in found["splits"]] == [("train", 10), ("val", 4)]
    assert [(c["name"], c["boxes"]) for c in found["splits"][0]["classes"]] == [("red", 30), ("white", 10)]
    assert command("train", root, *TINY, "-o", tmp_path / "run").code == 0


def test_the_corpus_is_what_the_docs_show():
    assert len(FAULTS) >= 40
    assert len({(row.format, row.what) for row in FAULTS}) == len(FAULTS)
    assert table() in DOCS.read_text(), "put the output of `python tests/data/faults.py` into docs/reliability.md"


def suspects(root: Path) -> Path:
    """One dataset with several suspects, and a class whose name is markup."""
    sound("COCO", root)
    add(root, [5, 5, 0, 4])
    add(root, [0, 0, 40, 30])
    without(root, lambda box: box["image_id"] == 5)
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}.json"
        file.write_text(file.read_text().replace('"red"', '"<b>[/red]&"'))
    return root


def test_the_page_shows_suspects_and_needs_no_other_file(tmp_path, command):
    root = suspects(tmp_path / "data")
    outcome = command("check", root, "--report", tmp_path / "report")
    page = tmp_path / "report" / "index.html"
    assert outcome.code == 0
    assert f"the page is {page}\n" in outcome.out
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["index.html"]
    text = page.read_text()
    for words in ("boxes without area ignored", "Boxes of each class", "&lt;b&gt;[/red]&amp;", "32 to 64"):
        assert words in text
    assert "<b>" not in text
    assert text.count("data:image/jpeg;base64,") == 3
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    for target in re.findall(r"href=\"#(\w+)\"", text):
        assert f'id="{target}"' in text


def test_settings_are_those_of_train(tmp_path, command):
    labelimg_flat(tmp_path / "data")
    found = tmp_path / "found.json"
    asked = ("--set", "data.split=[0.5, 0.5]", "--set", "model.input.short_side=480")
    outcome = command("check", tmp_path / "data", "--json", found, *asked)
    assert outcome.code == 0
    said = json.loads(found.read_text())
    assert [split["name"] for split in said["splits"]] == ["train", "val"]
    assert said["advice"]["short_side"] == 480
    assert command("check", tmp_path / "data", "--set", "model.input.short=480").code == 2


def test_nothing_is_written_into_the_dataset(tmp_path, command):
    root = sound("YOLO", tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    assert command("check", root, "--report", tmp_path / "report").code == 0
    assert before == {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def test_every_fault_is_counted_not_the_first_alone(tmp_path, command):
    root = sound("COCO", tmp_path / "data")
    for name in ("t1", "t4", "t5"):
        (root / "train" / f"{name}.png").unlink()
    (root / "val" / "v1.png").write_text("no image")
    edit(root, lambda values: [box.update(category_id=9) for box in values["annotations"][:7]])
    outcome, found = checked(command, root)
    counts = {(f["split"], f["kind"]): f["count"] for f in found["findings"] if f["level"] == "error"}
    assert outcome.code == 1
    assert counts == {
        ("train", "annotations of unknown categories"): 7,
        ("train", "images missing"): 3,
        ("val", "files that are not images"): 1,
    }
    assert "errors to fix before training: 11; warnings: " in outcome.out


def test_a_path_without_a_dataset(tmp_path, command):
    outcome, found = checked(command, tmp_path / "gone")
    assert outcome.code == 1
    (finding,) = found["findings"]
    assert "there is no such dataset" in finding["places"][0]["text"]
