"""Detections as annotations: what is written is read as a dataset again, with the same boxes and names."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from small_bulk import folder_of, jpeg

import doublehead
from doublehead.common.tables import imported
from doublehead.data.dataset import open_dataset
from doublehead.deploy.annotations import Annotator
from doublehead.deploy.choices import ANNOTATORS, FORMATS

MANY = 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("annotate") / "photos", MANY)


@pytest.fixture
def annotated(checkpoint, photos, tmp_path, command):
    """Run `predict` in a format, and give the folder and what the model finds."""

    def run(form):
        done = command(
            "predict", checkpoint, photos, "-o", tmp_path / "out", "--format", form, "--score", 0.1, "--device", "cpu"
        )
        assert done.code == 0, done.err
        found = doublehead.load(checkpoint, "cpu").predict(sorted(photos.iterdir()))
        return tmp_path / "out", {
            path.stem: f.above(0.1) for path, f in zip(sorted(photos.iterdir()), found, strict=True)
        }

    return run


@pytest.mark.parametrize("form", ANNOTATORS)
def test_every_row_is_a_choice_and_an_annotator(form) -> None:
    assert form in FORMATS
    assert issubclass(imported(ANNOTATORS[form]), Annotator)


@pytest.mark.parametrize("form", ["voc", "yolo", "cvat"])
def test_what_is_written_is_read_as_a_dataset(form, annotated, photos) -> None:
    output, found = annotated(form)
    shutil.copytree(photos, output / {"voc": "JPEGImages"}.get(form, "images"))
    dataset = open_dataset(output)
    records = {r.path.stem: (r, split) for split in map(dataset.read, dataset.splits) for r in split.records}
    assert sum(map(len, found.values()))
    assert {stem for stem, detections in found.items() if len(detections)} <= set(records)
    for stem, (record, split) in records.items():
        boxes, labels = record.training_boxes()
        names = [split.categories.names[label - 1] for label in np.asarray(labels).tolist()]
        assert names == found[stem].class_names
        assert np.abs(np.asarray(boxes) - found[stem].boxes).max(initial=0) < 0.02


def test_label_studio_gets_percentages_and_its_labels(annotated, photos) -> None:
    output, found = annotated("label-studio")
    tasks = json.loads((output / "label-studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        f"/data/local-files/?d={p.name}" for p in sorted(photos.iterdir())
    ]
    labels = ET.parse(output / "label-config.xml").getroot().find("RectangleLabels")
    assert labels is not None
    known = {label.get("value") for label in labels}
    assert sum(len(task["predictions"][0]["result"]) for task in tasks)
    for task, detections in zip(tasks, found.values(), strict=True):
        results = task["predictions"][0]["result"]
        assert len(results) == len(detections)
        for result, box, score in zip(results, detections.boxes, detections.scores, strict=True):
            value, width, height = result["value"], result["original_width"], result["original_height"]
            assert set(value["rectanglelabels"]) <= known
            x, y = value["x"] * width / 100, value["y"] * height / 100
            corners = [x, y, x + value["width"] * width / 100, y + value["height"] * height / 100]
            assert corners == pytest.approx(box.tolist(), abs=0.01)
            assert result["score"] == pytest.approx(float(score))


def test_images_of_one_name_are_refused_before_anything_is_written(checkpoint, tmp_path, command) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jpg").write_bytes(jpeg(1))
    done = command("predict", checkpoint, tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out", "--format", "yolo")
    assert done.code
    assert "same.jpg" in done.err
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_does_not_keep_the_others(checkpoint, photos, tmp_path, command) -> None:
    shutil.copytree(photos, tmp_path / "some")
    (tmp_path / "some" / "0002.jpg").write_bytes(b"no picture")
    done = command(
        "predict", checkpoint, tmp_path / "some", "-o", tmp_path / "out", "--format", "voc", "--device", "cpu"
    )
    assert done.code
    assert "0002.jpg" in done.err
    assert sorted(path.stem for path in (tmp_path / "out/Annotations").iterdir()) == ["0000", "0001", "0003", "0004"]
