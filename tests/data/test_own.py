"""Datasets that are Python objects: they train, resume and are measured like files, and are checked like files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.data.check import read_for_training
from doublehead.data.dataset import open_dataset
from doublehead.data.own import own_dataset, own_split
from small import SMALL

NAMES = ["cat", "dog"]


class Items:
    """As a user's own dataset: a sequence with class names."""

    def __init__(self, items: list[Any], classes: list[str] | None = None) -> None:
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def item(boxes: Any, labels: Any, size: tuple[int, int] = (60, 40)) -> Any:
    return Image.new("RGB", size, "green"), {"boxes": boxes, "labels": labels}


def of_files(dataset: Path, split: str) -> Items:
    """The images and boxes of a dataset on disk, as tensors."""
    found = open_dataset(dataset).read(split)
    items = []
    for record in found.records:
        image = torch.from_numpy(np.array(Image.open(record.path))).permute(2, 0, 1)
        items.append((image, {"boxes": torch.from_numpy(record.boxes), "labels": torch.from_numpy(record.labels - 1)}))
    return Items(items, list(found.categories.names))


@pytest.mark.parametrize(
    ("boxes", "labels"),
    [
        ([[1, 2, 30, 20], [5, 5, 9, 9]], [0, 1]),
        (np.array([[1.0, 2, 30, 20], [5, 5, 9, 9]]), np.array([0, 1])),
        (torch.tensor([[1.0, 2, 30, 20], [5, 5, 9, 9]]), torch.tensor([0, 1])),
        (tv_tensors.BoundingBoxes([[1, 2, 30, 20], [5, 5, 9, 9]], format="XYXY", canvas_size=(40, 60)), ["cat", "dog"]),
        (tv_tensors.BoundingBoxes([[1, 2, 29, 18], [5, 5, 4, 4]], format="XYWH", canvas_size=(40, 60)), (0, 1)),
        (list(torch.tensor([[1.0, 2, 30, 20], [5, 5, 9, 9]])), list(np.array([0, 1]))),
    ],
)
def test_boxes_and_labels_in_any_form(boxes: Any, labels: Any) -> None:
    split = own_split("train", Items([item(boxes, labels)], NAMES)).sound()
    (record,) = split.records
    assert record.boxes.tolist() == [[1, 2, 30, 20], [5, 5, 9, 9]]
    assert record.labels.tolist() == [1, 2]
    assert (record.width, record.height, split.categories.names) == (60, 40, ("cat", "dog"))


def test_labels_of_torchvisions_detectors_count_from_one() -> None:
    split = own_split("train", Items([item([[1, 2, 30, 20]], [2])]), ["__background__", *NAMES]).sound()
    assert split.categories.names == ("cat", "dog")
    assert split.records[0].labels.tolist() == [2]


@pytest.mark.parametrize(
    ("items", "classes", "named"),
    [
        ([item([[1, 2, 30, 20]], [2])], NAMES, "item 0 of train.*label 2"),
        ([item([[1, 2, 30, 20]], ["cow"])], NAMES, "item 0 of train.*label `cow`"),
        ([item([], []), item([[1, 2, 30, 20]], [0, 1])], NAMES, "item 1 of train: has 1 boxes but 2 labels"),
        ([item([[1, 2, 30]], [0])], NAMES, "item 0 of train: boxes must be"),
        ([item([[1, 2, 30, 20, 5, 5, 9, 9]], [0, 1])], NAMES, "item 0 of train: boxes must be"),
        ([item([[1, 2, 30, 20]], [None])], NAMES, "item 0 of train.*label None"),
        ([item([[1, 2, 30, 20]], 0)], NAMES, "item 0 of train: labels must be"),
        ([item([[1, 2, 30, 20]], "cat")], NAMES, "item 0 of train: labels must be"),
        ([item([[1, 2, 30, 20]], [0])], ["cat", "cat"], "`cat` twice"),
        ([item([[1, 2, float("nan"), 9]], [0])], NAMES, "item 0 of train.*not finite"),
        ([("no.jpg", {"boxes": [], "labels": []})], NAMES, "item 0 of train: no.jpg: there is no such image"),
        ([Image.new("RGB", (4, 4))], NAMES, "item 0 of train: must be"),
        ([item([], [])], None, "no class names"),
    ],
)
def test_mistakes_name_the_item(items: list[Any], classes: list[str] | None, named: str) -> None:
    with pytest.raises(DoubleheadError, match=named):
        own_dataset(Items(items, classes)).read("train")


class Failing(Items):
    """As a dataset whose files are damaged."""

    def __getitem__(self, index: int) -> Any:
        raise RuntimeError("broken zip")


class Flipping(Items):
    """As a dataset with a random transform: every other reading is flipped, boxes and all."""

    readings = 0

    def __getitem__(self, index: int) -> Any:
        image, target = self.items[index]
        self.readings += 1
        if self.readings % 2:
            return image, target
        boxes = [[image.width - x2, y1, image.width - x1, y2] for x1, y1, x2, y2 in target["boxes"]]
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), {"boxes": boxes, "labels": target["labels"]}


def test_a_dataset_that_fails_is_told_by_its_item() -> None:
    with pytest.raises(DoubleheadError, match=r"item 0 of train.*broken zip"):
        own_dataset(Failing([item([], [])], NAMES)).read("train")


def test_random_transforms_never_part_images_from_their_boxes(tmp_path: Path) -> None:
    data = Flipping([item([[1, 2, 30, 20]], [0]) for _ in range(3)], NAMES)
    with pytest.raises(DoubleheadError, match=r"item . of train.*random transforms"):
        doublehead.train(data, "double-head-tiny", tmp_path / "run", settings=SMALL)


def test_splits_keep_classes_of_their_own() -> None:
    """Classes in another order are never taken for the first split's; a split without names has the first's."""
    one = Items([item([[1, 2, 30, 20]], [0])], NAMES)
    other = Items([item([[1, 2, 30, 20]], [0])], NAMES[::-1])
    with pytest.raises(DoubleheadError, match="different classes"):
        read_for_training(own_dataset({"train": one, "val": other}))
    assert own_dataset({"train": one, "val": Items(one.items)}).read("val").categories.names == tuple(NAMES)


def test_splits_go_by_their_usual_names() -> None:
    splits = own_dataset({"training": [], "validation": [item([], [])]}, NAMES)
    assert len(splits.read("val").records) == 1
    with pytest.raises(DoubleheadError, match="twice"):
        own_dataset({"val": [], "valid": []}, NAMES)


def test_resume_says_that_it_needs_the_objects(dataset: Path, tmp_path: Path) -> None:
    own = {"train": of_files(dataset, "train")}
    doublehead.train(own, "double-head-tiny", tmp_path / "own", settings=SMALL | {"train.steps": 1})
    with pytest.raises(DoubleheadError, match=r"resume\(.*data="):
        doublehead.resume(tmp_path / "own")
    with pytest.raises(DoubleheadError, match="path"):
        doublehead.resume(tmp_path / "own", data=str(dataset))


def test_it_trains_resumes_and_is_measured_as_files_are(dataset: Path, tmp_path: Path) -> None:
    """The same images and boxes: the same weights, bit for bit, and the same figures."""
    settings = SMALL | {"train.steps": 4, "train.evaluate_every": 1, "data.augment.horizontal_flip": 0.5}
    own = {"train": of_files(dataset, "train"), "val": of_files(dataset, "val")}
    best = doublehead.train(own, "double-head-tiny", tmp_path / "own", settings=settings | {"data.workers": 2})
    files = doublehead.train(dataset, "double-head-tiny", tmp_path / "files", settings=settings)
    weights = [doublehead.load(path, "cpu").model.state_dict() for path in (best, files)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    measured = doublehead.evaluate(best, own["val"], device="cpu")
    assert measured.metrics["AP"] == doublehead.evaluate(files, dataset, device="cpu").metrics["AP"]
    assert doublehead.resume(tmp_path / "own", data=own) == best
    other = {"train": of_files(dataset, "val"), "val": own["val"]}
    with pytest.raises(DoubleheadError, match="train data has changed"):
        doublehead.resume(tmp_path / "own", data=other)
    assert json.loads((tmp_path / "own" / "environment.json").read_text())
