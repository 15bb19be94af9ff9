"""Exports of annotation tools, each with the same pictures, read from their folders alone."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cases import ALL, CASES, Case, encoded, rows

from doublehead.data.check import read_record
from doublehead.data.dataset import open_dataset
from doublehead.data.records import Record, Split

PICTURE = {encoded(k): k for k in ALL}


def picture_of(record: Record) -> int:
    return PICTURE[record.encoded() or record.path.read_bytes()]


def require_truth(record: Record, split: Split, case: Case) -> None:
    names = [split.categories.names[label - 1] for label in record.labels]
    found = sorted(zip(names, map(tuple, record.boxes.tolist()), strict=True))
    calls = dict(zip(("car", "dog"), case.names, strict=False))
    wanted = sorted((calls.get(c, case.names[0]), edges) for c, *edges in rows(picture_of(record)))
    assert [name for name, _ in found] == [name for name, _ in wanted]
    np.testing.assert_allclose([box for _, box in found], [box for _, box in wanted], atol=case.lossy)
    assert read_record(record).size == (record.width, record.height)


@pytest.mark.parametrize("name", CASES)
def test_it_reads_as_what_it_shows(name, tmp_path):
    case = CASES[name]
    case.write(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    splits = {split: dataset.read(split) for split in (case.splits if "all" in case.splits else dataset.distinct)}
    assert {split: sorted(map(picture_of, found.records)) for split, found in splits.items()} == {
        split: sorted(pictures) for split, pictures in case.splits.items()
    }
    for found in splits.values():
        assert found.categories.names == case.names
        for record in found.records:
            require_truth(record, found, case)
    kinds = {kind for found in splits.values() for kind in found.findings.by_kind}
    assert set(case.kinds) <= kinds
    assert not kinds & {"images without a label file, taken as empty", "label files without an image"}
    assert sum(int(record.crowd.sum()) for found in splits.values() for record in found.records) == case.crowds
    if "all" in case.splits:
        shared = [picture_of(record) for split in dataset.distinct for record in dataset.read(split).records]
        assert sorted(shared) == sorted(ALL)


@pytest.mark.parametrize("name", CASES)
def test_it_reads_the_same_by_every_way_to_say_its_folder(name, tmp_path, monkeypatch):
    root = tmp_path / "data"
    CASES[name].write(root)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def read(path: str | Path) -> list[object]:
        dataset = open_dataset(path)
        splits = [dataset.read(split) for split in dataset.distinct]
        return [
            (split.name, os.path.realpath(record.path), record.boxes.tolist(), record.labels.tolist())
            for split in splits for record in split.records
        ]  # fmt: skip

    wanted = read(root)
    assert wanted
    for path in ("data", "./data/", "~/data", f"{root}/", "link", tmp_path / "link"):
        assert read(path) == wanted


def test_a_name_too_long_for_a_file_is_a_missing_image(tmp_path):
    CASES["vott_assets"].write(tmp_path)
    file = tmp_path / "id0-asset.json"
    content = json.loads(file.read_text())
    content["asset"]["name"] = "a" * 5000
    file.write_text(json.dumps(content))
    dataset = open_dataset(tmp_path)
    found = [dataset.look(split).findings for split in dataset.distinct]
    assert (
        sum(findings.by_kind["images missing"].count for findings in found if "images missing" in findings.by_kind) == 1
    )
