"""The step `use`: functions of a user's own, Albumentations, and what they return by mistake."""

from __future__ import annotations

import pickle
import random
import sys
import types
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from making import picture
from torchvision.transforms import v2

from doublehead.common.errors import DoubleheadError
from doublehead.data.loader import DetectionDataset, training_loader
from doublehead.data.records import Categories, Findings, Record, Split
from doublehead.data.steps import STEPS, AugmentConfig, StepRow
from doublehead.data.transforms import training_transform
from doublehead.training.recipes import resolve


@pytest.fixture
def split(tmp_path):
    records = [
        Record.of(
            i, picture(tmp_path / f"{i}.png", 60, 45, seed=i), (60, 45), [(2, 3, 30, 25), (10, 8, 50, 40)], [1, 2]
        )
        for i in range(4)
    ]
    return Split("train", records, Categories(("a", "b"), (1, 2)), Findings())


@pytest.fixture
def module(monkeypatch):
    """A module `own` that tests put functions into."""
    found = types.ModuleType("own")
    monkeypatch.setitem(sys.modules, "own", found)
    return found


def made(split, said, seed=0):
    return DetectionDataset(split, training_transform(AugmentConfig.model_validate(said), 45, 60), seed)


def same(one, other):
    return one[0].equal(other[0]) and one[1]["boxes"].equal(other[1]["boxes"])


def test_a_transform_of_torchvision_is_used_as_it_is(split, module):
    module.transform = v2.Compose([v2.RandomHorizontalFlip(1), v2.ConvertBoundingBoxFormat("CXCYWH")])
    own, flip = made(split, {"use": "own:transform"}), made(split, [{"flip": 1}])
    assert all(same(own[0, index], flip[0, index]) for index in range(4))


def test_use_takes_the_place_of_the_recipe_and_goes_with_other_steps():
    config = resolve("double-head-tiny", settings={"data.augment.use": "own:transform"})
    assert [step.name for step in config.data.augment.steps] == ["use"]
    config = resolve("double-head-tiny", settings={"data.augment": [{"flip": 0.5}, {"use": "own:transform"}]})
    assert [step.name for step in config.data.augment.steps] == ["flip", "use"]


def noisy(image, boxes, labels):
    """Random by numpy, `random` and torch, none of them seeded by the user."""
    shift = int(np.random.randint(20)) + random.randrange(20) + int(torch.randint(20, ()))
    return (image.int() + shift).clamp(max=255).to(torch.uint8), boxes, labels


def test_random_numbers_of_any_kind_depend_on_seed_epoch_and_index_alone(split, module):
    module.noisy = noisy
    dataset = made(split, {"use": "own:noisy"})
    images = {}
    for epoch, index in [(0, 0), (1, 0), (0, 1)]:
        images[epoch, index] = dataset[epoch, index][0]
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    np.random.seed(7)
    random.seed(7)
    assert dataset[0, 0][0].equal(images[0, 0])
    assert not dataset[1, 0][0].equal(images[0, 0])
    random.setstate(before[0])
    dataset[0, 0]
    assert random.getstate() == before[0]
    assert torch.get_rng_state().equal(before[2])
    whole = [batch[0] for batch in training_loader(dataset, 2, 2, 0, 1, 0, 0, 4, 0)]
    for workers in (1, 2):
        found = [batch[0] for batch in training_loader(dataset, 2, 2, 0, 1, 0, 0, 4, workers)]
        assert all(a.equal(b) for one, other in zip(found, whole, strict=True) for a, b in zip(one, other, strict=True))


class Compose:
    """Stands in for Albumentations' Compose: its call and attributes as documented, and a flip with probability 1/2."""

    transforms: ClassVar[list[Any]] = []

    def __init__(self, box_format, field, own_generator=True):
        self.processors = {
            "bboxes": types.SimpleNamespace(params=types.SimpleNamespace(format=box_format, label_fields=[field]))
        }
        self.format, self.field = box_format, field
        if own_generator:
            self.set_random_seed = self._seed
        self.random = random

    def _seed(self, seed):
        self.random = random.Random(seed)

    def __call__(self, *args, **data):
        assert not args
        assert data.keys() == {"image", "bboxes", self.field}
        image, boxes = data["image"], np.array(data["bboxes"], float).reshape(-1, 4)
        assert isinstance(image, np.ndarray)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        width = 1 if self.format in ("yolo", "albumentations") else image.shape[1]
        if self.random.random() < 0.5:
            image = image[:, ::-1]
            left, _, right, _ = boxes.T.copy()
            if self.format in ("pascal_voc", "albumentations"):
                boxes[:, 0], boxes[:, 2] = width - right, width - left
            elif self.format == "coco":
                boxes[:, 0] = width - left - right
            else:
                boxes[:, 0] = width - left
        return {"image": image, "bboxes": boxes.tolist(), self.field: [float(label) for label in data[self.field]]}


@pytest.mark.parametrize("box_format", ["pascal_voc", "coco", "yolo", "albumentations"])
@pytest.mark.parametrize("own_generator", [True, False])
def test_a_compose_of_albumentations_is_called_as_documented(split, module, box_format, own_generator):
    module.compose = Compose(box_format, "category", own_generator)
    own, plain, flip = made(split, {"use": "own:compose"}), made(split, []), made(split, [{"flip": 1}])
    flipped = 0
    for epoch in range(8):
        (image, target), again = own[epoch, 1], own[epoch, 1]
        expected = flip[0, 1] if image.equal(flip[0, 1][0]) else plain[0, 1]
        flipped += expected[0].equal(flip[0, 1][0])
        assert image.equal(expected[0])
        assert torch.allclose(target["boxes"], expected[1]["boxes"], atol=1e-4)
        assert target["labels"].tolist() == [1, 2]
        assert same(again, (image, target))
    assert 0 < flipped < 8


def test_the_real_albumentations(split, module):
    albumentations = pytest.importorskip("albumentations")  # optional, and never a dependency
    parameters = albumentations.BboxParams(format="coco", label_fields=["labels"])
    module.compose = albumentations.Compose([albumentations.HorizontalFlip(p=1)], bbox_params=parameters)
    own, flip = made(split, {"use": "own:compose"}), made(split, [{"flip": 1}])
    assert own[0, 0][0].equal(flip[0, 0][0])
    assert torch.allclose(own[0, 0][1]["boxes"], flip[0, 0][1]["boxes"], atol=1e-3)


def test_a_compose_without_parameters_for_boxes_is_refused(split, module):
    module.compose = Compose("pascal_voc", "labels")
    module.compose.processors = {}
    with pytest.raises(DoubleheadError, match=r"own:compose bbox_params=BboxParams"):
        made(split, {"use": "own:compose"})


MISTAKES = {
    "nothing": lambda image, boxes, labels: None,
    "two values": lambda image, boxes, labels: (image, boxes),
    "labels of another length": lambda image, boxes, labels: (image, boxes, labels[:1]),
    "boxes of another length": lambda image, boxes, labels: (image, boxes[:1], labels),
    "boxes of five columns": lambda image, boxes, labels: (image, torch.zeros(2, 5), labels),
    "a box outside": lambda image, boxes, labels: (image, boxes + 25, labels),
    "a negative box": lambda image, boxes, labels: (image, boxes - 25, labels),
    "NaN": lambda image, boxes, labels: (image, boxes * float("nan"), labels),
    "infinity": lambda image, boxes, labels: (image, boxes * float("inf"), labels),
    "x, y, width, height": lambda image, boxes, labels: (image, torch.tensor([[30.0, 20, 20, 10]] * 2), labels),
    "an image of floats": lambda image, boxes, labels: (image / 255, boxes, labels),
    "an image of one channel": lambda image, boxes, labels: (image[:1], boxes, labels),
    "an image of channels last": lambda image, boxes, labels: (image.permute(1, 2, 0), boxes, labels),
    "an image without pixels": lambda image, boxes, labels: (image[:, :0], boxes, labels),
    "an array as image": lambda image, boxes, labels: (image.numpy(), boxes, labels),
    "boxes of words": lambda image, boxes, labels: (image, ["left", "right"], labels),
    "labels of words": lambda image, boxes, labels: (image, boxes, ["a", "b"]),
    "labels of floats": lambda image, boxes, labels: (image, boxes, labels / 2),
    "labels from 0": lambda image, boxes, labels: (image, boxes, labels - 1),
    "an error": lambda image, boxes, labels: image[999],
}


@pytest.mark.parametrize("mistake", [pytest.param(function, id=name) for name, function in MISTAKES.items()])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_sample_is_told_in_one_sentence_with_step_and_image(split, module, mistake, workers):
    if workers and mistake is not MISTAKES["an error"]:
        return
    module.mistake = mistake
    dataset = made(split, [{"flip": 0.5}, {"use": "own:mistake"}])
    with pytest.raises(DoubleheadError) as caught:
        list(training_loader(dataset, 1, 1, 0, 1, 0, 0, 1, workers))
    said = str(caught.value)
    assert any(said.startswith(f"{record.path}: step `use`") for record in split.records)
    assert "\n" not in said


def test_a_label_of_no_class_is_told_with_its_image(split, module):
    module.more = lambda image, boxes, labels: (image, boxes, labels + 1)
    with pytest.raises(DoubleheadError, match=r"2\.png: .* label 3, but there are 2 classes"):
        made(split, {"use": "own:more"})[0, 2]


def test_numbers_of_any_fitting_type_are_taken(split, module):
    module.plain = lambda image, boxes, labels: (image, boxes.double().numpy(), labels.to(torch.int32))
    module.lists = lambda image, boxes, labels: [image, boxes.tolist(), labels.tolist()]
    module.none = lambda image, boxes, labels: (image, [], [])
    plain = made(split, [])
    for name in ("plain", "lists"):
        image, target = made(split, {"use": f"own:{name}"})[0, 0]
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        assert same((image, target), plain[0, 0])
    assert made(split, {"use": "own:none"})[0, 0][1]["boxes"].shape == (0, 4)


def test_a_row_of_ones_own_is_checked_alike(split, monkeypatch):
    row = StepRow(
        STEPS["flip"].config, lambda settings, size: lambda image, boxes, labels, others: (image, boxes, labels[:1])
    )
    monkeypatch.setitem(STEPS, "mine", row)
    with pytest.raises(DoubleheadError, match=r"0\.png: step `mine` returned 2 boxes but 1 labels"):
        made(split, [{"mine": {}}])[0, 0]


@pytest.mark.parametrize("name", ["own:absent", "nowhere.at.all:transform", "own:number"])
def test_a_name_that_is_no_function_is_refused_before_training(split, module, name):
    module.number = 3
    with pytest.raises(DoubleheadError) as caught:
        made(split, {"use": name})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_functions_in_the_current_folder_are_found_and_reach_processes_that_are_not_forked(
    tmp_path, monkeypatch, split
):
    (tmp_path / "beside_me.py").write_text(
        "def transform(image, boxes, labels):\n    return image.flip(1), boxes, labels\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    dataset = made(split, {"use": "beside_me:transform"})
    again = pickle.loads(pickle.dumps(dataset))
    assert same(again[0, 0], dataset[0, 0])
    assert not dataset[0, 0][0].equal(made(split, [])[0, 0][0])
