from collections import defaultdict

from doublehead.config import AugmentConfig
from doublehead.data.check import check_images
from doublehead.data.dataset import open_dataset
from doublehead.data.inspection import inspect
from doublehead.data.loader import DetectionDataset, evaluation_loader, training_loader
from doublehead.data.transforms import training_transform


def test_bccd(shared):
    dataset = open_dataset(shared / "bccd")
    splits = {name: dataset.read(name) for name in ("train", "val", "test")}
    assert {name: len(split.records) for name, split in splits.items()} == {"train": 205, "val": 87, "test": 72}
    kind = "boxes without area ignored"
    findings = [split.findings.by_kind[kind] for split in splits.values() if kind in split.findings.by_kind]
    left_out = sorted(place.text for finding in findings for place in finding.places)
    assert left_out == ["BloodImage_00338.jpg (RBC)", "BloodImage_00343.jpg (RBC)"]
    assert all(split.categories.names == ("Platelets", "RBC", "WBC") for split in splits.values())
    assert sum(len(record.boxes) for split in splits.values() for record in split.records) == 4888 - 2
    check_images(splits["val"].records, "header")


def test_check_finds_what_is_known_of_bccd(shared):
    found = inspect(shared / "bccd")
    assert not found.errors
    places = defaultdict(list)
    for _, finding in found.rows:
        places[finding.kind] += [place.text for place in finding.places]
    assert sorted(places["boxes without area ignored"]) == ["BloodImage_00338.jpg (RBC)", "BloodImage_00343.jpg (RBC)"]
    unlabelled = places["images that look unlabelled"]
    assert len(unlabelled) == 15
    assert all("no `RBC`" in text for text in unlabelled)


def test_coco(shared):
    split = open_dataset(shared / "coco_ccby").read("all")
    assert len(split.records) == 48
    assert len(split.categories) == 80
    assert split.categories.ids[-1] == 90
    assert any(record.crowd.any() for record in split.records)
    assert any(not len(record.boxes) for record in split.records)
    check_images(split.records)


def test_nothing_is_written_into_the_dataset(tmp_path, shared):
    import shutil

    copy = shutil.copytree(shared / "coco_ccby", tmp_path / "coco")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")} | {copy: copy.stat().st_mtime_ns}
    split = open_dataset(copy).read("train")
    dataset = DetectionDataset(split, training_transform(AugmentConfig(), 64, 96), 0)
    list(training_loader(dataset, 4, 4, 0, 1, 0, 0, 3, 1))
    list(evaluation_loader(split, 8, 0))
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*")} | {copy: copy.stat().st_mtime_ns}
