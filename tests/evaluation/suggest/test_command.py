"""`doublehead suggest` as a user runs it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from doublehead.data.dataset import open_dataset


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def state(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_labels_and_images_without_labels_are_ranked(own_dataset, trained, tmp_path, command):
    first = next((own_dataset / "train").iterdir())
    shutil.copy(first, first.with_name("new.jpg"))
    before = state(own_dataset)
    out = tmp_path / "out"
    outcome = command("suggest", trained / "best.safetensors", own_dataset, "-o", out)
    assert outcome.code == 0, outcome.err
    assert state(own_dataset) == before
    labels, images = lines(out / "labels.csv"), lines(out / "images.csv")
    assert [row["image"] for row in images] == ["train/new.jpg"]
    assert {row["split"] for row in labels} == {"train", "val", "test"}
    doubts = [float(row["doubt"]) for row in labels]
    assert doubts == sorted(doubts, reverse=True)
    dataset = open_dataset(own_dataset)
    records = {(name, r.image_id): r for name in dataset.distinct for r in dataset.read(name).records}
    for row in labels:
        if row["kind"] != "missing":
            box = records[row["split"], int(row["image_id"])].boxes[int(row["annotation"])]
            assert [float(row[edge]) for edge in ("x1", "y1", "x2", "y2")] == pytest.approx(box.tolist(), abs=0.06)
    values = json.loads((out / "suggestions.json").read_text())
    assert (len(values["labels"]), len(values["images"])) == (len(labels), len(images))
    page = (out / "index.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert 'src="data:' in page


def test_one_split(dataset, trained, tmp_path, command):
    outcome = command("suggest", trained / "best.safetensors", dataset, "--split", "val", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert {row["split"] for row in lines(tmp_path / "out" / "labels.csv")} == {"val"}


def test_a_folder_of_images_alone(dataset, trained, tmp_path, command):
    folder = shutil.copytree(dataset / "val", tmp_path / "images")
    outcome = command("suggest", trained / "best.safetensors", folder, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    images = lines(tmp_path / "out" / "images.csv")
    assert sorted(row["image"] for row in images) == sorted(path.name for path in folder.iterdir())
    scores = [float(row["score"]) for row in images]
    assert scores == sorted(scores, reverse=True)
    assert lines(tmp_path / "out" / "labels.csv") == []


def test_mistakes_are_named(dataset, trained, tmp_path, command):
    weights = trained / "best.safetensors"
    assert "tomorrow" in command("suggest", weights, dataset, "--split", "tomorrow", "-o", tmp_path / "a").sentence
    assert "tiles" in command("suggest", weights, dataset, "--set", "tiles=64", "-o", tmp_path / "b").sentence
    other = shutil.copytree(dataset, tmp_path / "other")
    for file in (other / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        content["categories"][0]["name"] = "unicorn"
        file.write_text(json.dumps(content))
    assert "unicorn" in command("suggest", weights, other, "-o", tmp_path / "c").sentence
    assert not any((tmp_path / name).exists() for name in "abc")
