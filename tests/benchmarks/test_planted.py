"""Planted label errors are what their kinds say, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.planted import FREE, KINDS, SHIFTED, Planted, hits, plant, read_planted
from doublehead.data.dataset import open_dataset
from doublehead.data.records import Record
from doublehead.data.synthetic import synthesize
from doublehead.evaluation.analysis.proposals import iou
from doublehead.evaluation.suggest.labels import Suspect


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "shapes"
    synthesize(path, {"train": 12, "val": 4}, size=(160, 120), objects=(3, 6), lengths=(12, 40))
    return path


def rows(record: Record) -> set[tuple]:
    return {(*box, label) for box, label in zip(record.boxes.round(1).tolist(), record.labels.tolist(), strict=True)}


def test_each_error_is_of_its_kind(clean: Path, tmp_path: Path) -> None:
    planted = plant(clean, tmp_path / "planted", share=0.4, seed=3)
    assert read_planted(tmp_path / "planted") == planted
    assert {error.kind for error in planted} == set(KINDS)
    before, after = open_dataset(clean), open_dataset(tmp_path / "planted")
    for name in before.distinct:
        old = {record.image_id: record for record in before.read(name).records}
        new = {record.image_id: record for record in after.read(name).records}
        boxes = sum(len(record.boxes) for record in old.values())
        assert sum(error.split == name for error in planted) == round(0.4 * boxes)
        for image, record in old.items():
            errors = [error for error in planted if (error.split, error.image_id) == (name, image)]
            count = {kind: sum(error.kind == kind for error in errors) for kind in KINDS}
            assert len(new[image].boxes) == len(record.boxes) - count["missing"] + count["spurious"]
            assert len(rows(record) - rows(new[image])) == len(errors) - count["spurious"]
            for error in errors:
                label = after.read(name).categories.names.index(error.label) + 1
                overlaps = iou(np.array([error.box]), record.boxes)[0]
                same = record.labels == label
                written = {(*np.float32(error.box).round(1).tolist(), label)} <= rows(new[image])
                assert written == (error.kind != "missing")
                if error.kind == "class":
                    assert overlaps[~same].max() > 0.99
                elif error.kind == "place":
                    assert ((overlaps > SHIFTED[0] - 0.01) & (overlaps < SHIFTED[1] + 0.01) & same).any()
                elif error.kind == "missing":
                    assert overlaps[same].max() > 0.99
                else:
                    assert overlaps.max() <= FREE + 0.01


def test_the_seed_decides(clean: Path, tmp_path: Path) -> None:
    assert plant(clean, tmp_path / "a", seed=1) == plant(clean, tmp_path / "b", seed=1)
    assert plant(clean, tmp_path / "c", seed=1) != plant(clean, tmp_path / "d", seed=2)


def test_each_error_is_found_once_whatever_its_kind(clean: Path, tmp_path: Path) -> None:
    plant(clean, tmp_path / "planted", share=0.4, seed=3)
    split = open_dataset(tmp_path / "planted").read("train")
    planted = [error for error in read_planted(tmp_path / "planted") if error.split == "train"]
    records = {record.image_id: record for record in split.records}

    def suspect(error: Planted) -> Suspect:
        box, label = np.array(error.box), split.categories.names.index(error.label) + 1
        if error.kind == "missing":
            return Suspect(records[error.image_id], "train", "missing", 1, -1, None, 0, box + 1, label, 1, 1)
        return Suspect(records[error.image_id], "train", "place", 1, 0, box, label, box, label, 1, 1)

    every = [suspect(error) for error in planted]
    assert hits(every, planted, split.categories.names) == planted
    assert hits(every + every, planted, split.categories.names)[len(every) :] == [None] * len(every)
    right = {(error.image_id, tuple(error.box)) for error in planted}
    others = [
        Suspect(record, "train", "class", 1, row, box, int(label), box, int(label), 1, 1)
        for record in split.records
        for row, (box, label) in enumerate(zip(record.boxes, record.labels, strict=True))
        if not any(image == record.image_id and np.abs(np.array(b) - box).max() < 1 for image, b in right)
    ]
    assert others
    assert hits(others, planted, split.categories.names) == [None] * len(others)
