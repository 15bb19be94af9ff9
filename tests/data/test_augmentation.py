"""Augmentation is a list of named steps; a step of a user's own is one row and may ask for other images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import picture
from pydantic import Field
from torchvision import tv_tensors
from torchvision.transforms import v2

from doublehead.common.errors import DoubleheadError
from doublehead.common.strict import Strict
from doublehead.config import Config
from doublehead.data.loader import DetectionDataset, training_loader
from doublehead.data.records import Categories, Findings, Record, Split
from doublehead.data.steps import PRESETS, STEPS, AugmentConfig, StepRow
from doublehead.data.transforms import DropEmptyBoxes, training_transform
from doublehead.training.recipes import resolve

NAMES = ["iou_crop", "short_sides", "flip", "vertical_flip", "colour"]


@pytest.fixture
def split(tmp_path):
    records = []
    for i in range(7):
        path = picture(tmp_path / f"{i}.png", 60, 45, seed=i)
        boxes = np.array([[2, 3, 30, 25], [10, 8, 50, 40]], np.float32)[: 1 + i % 2]
        n = len(boxes)
        records.append(Record(i, path, 60, 45, boxes, np.full(n, 1), np.zeros(n, bool), np.ones(n, np.float32)))
    return Split("train", records, Categories(("a",), (1,)), Findings())


def steps(config: Config) -> dict[str, object]:
    return {step.name: step.settings for step in config.data.augment.steps}


# Reading


def test_the_keys_of_the_previous_version_set_the_standard_steps():
    config = resolve("double-head-tiny", settings={"data.augment.vertical_flip": 0.5, "data.augment.short_sides": [64]})
    found = steps(config)
    assert list(found) == NAMES
    assert (found["flip"].p, found["vertical_flip"].p, found["iou_crop"].p) == (0.5, 0.5, 0)
    assert found["colour"].strength == 0.5  # the recipe's
    assert found["short_sides"].sides == (64,)


def test_a_list_says_all_and_is_written_and_read_again():
    said = [{"colour": {"strength": 0.25}}, {"flip": {"p": 1}}]
    config = resolve("double-head-tiny", settings={"data.augment": said})
    dumped = config.model_dump(mode="json")
    assert dumped["data"]["augment"] == [{"colour": {"strength": 0.25}}, {"flip": {"p": 1.0}}]
    assert Config.model_validate(dumped) == config


@pytest.mark.parametrize("key", ["data.augment.horizontal_flip", "data.augment.flip.p"])
def test_a_step_of_a_list_in_a_file_is_set_by_its_name(tmp_path, key):
    file = tmp_path / "c.yaml"
    file.write_text("data: {augment: [{flip: {p: 0.5}}, {colour: {strength: 0.1}}]}")
    config = resolve("double-head-tiny", file=file, settings={key: 0.125, "data.augment.vertical_flip": 0.25})
    found = steps(config)
    assert list(found) == ["flip", "colour", "vertical_flip"]
    assert (found["flip"].p, found["colour"].strength, found["vertical_flip"].p) == (0.125, 0.1, 0.25)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([{"flap": {}}], "unknown step `flap`"),
        ([{"flip": {"q": 1}}], "flip: unknown key `q`"),
        ([{"flip": {"p": 2}}], "flip: `p`"),
        ([{"flip": {}, "colour": {}}], "write each step as"),
        (["flip"], "write each step as"),
        ("flip", "data.augment"),
        ({"flap": 0.5}, "unknown step `flap`"),
        ({"steps": 3}, "data.augment"),
        (None, "data.augment"),
        ("heavy", "unknown preset `heavy`; choose none, light, strong"),
        ({"steps": "heavy"}, "unknown preset `heavy`"),
        ([{"lsj": {"scale": [2, 1]}}], "lsj: `scale`"),
        ([{"lsj": {"scale": [0, 1]}}], "lsj: `scale"),
        ([{"use": "no colon"}], "use: `transform`: write it as package.module:name"),
        ([{"use": {}}], "use: `transform`"),
        ([{"jpeg": {"quality": [0, 90]}}], "jpeg: `quality"),
    ],
)
def test_a_slip_is_named(said, words):
    with pytest.raises(DoubleheadError) as error:
        resolve("double-head-tiny", settings={"data.augment": said})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_preset_says_all_and_its_steps_are_set_by_name():
    presets = {name: resolve("double-head-lite", settings={"data.augment": name}) for name in PRESETS}
    assert steps(presets["none"]) == {}
    assert list(steps(presets["light"])) == ["flip", "colour"]  # the recipe says colour too, which is left out
    assert {"mosaic", "copy_paste", "flip"} <= steps(presets["strong"]).keys()
    config = resolve("double-head-lite", settings={"data.augment": "strong", "data.augment.mosaic.p": 0.125})
    assert steps(config)["mosaic"].p == 0.125
    assert list(steps(config)) == list(steps(presets["strong"]))
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_a_preset_in_a_file_is_changed_by_name(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("data: {augment: strong}")
    found = steps(resolve("double-head-tiny", file=file, settings={"data.augment.flip": 0.25}))
    assert (found["flip"].p, "mosaic" in found) == (0.25, True)
    found = steps(resolve("double-head-tiny", file=file, settings={"data.augment": "none"}))
    assert found == {}


def test_a_plain_value_sets_a_steps_main_field():
    said = [{"flip": 0.2}, {"colour": 0.3}, {"short_sides": [32, 48]}, {"mosaic": 0.4}, {"use": "a.b:c"}]
    found = steps(resolve("double-head-tiny", settings={"data.augment": said}))
    assert (found["flip"].p, found["colour"].strength, found["short_sides"].sides) == (0.2, 0.3, (32, 48))
    assert (found["mosaic"].p, found["use"].transform) == (0.4, "a.b:c")


# Working


def former(augment: dict, short_side: int, long_side: int):
    """The transform of version 0.1, in which the size came second."""

    class IoUCrop(v2.RandomIoUCrop):
        def make_params(self, flat):
            return super().make_params(flat) if float(torch.rand(())) < augment["iou_crop"] else {}

    class Size(v2.RandomShortestSize):
        def make_params(self, flat):
            boxes = next(value for value in flat if isinstance(value, tv_tensors.BoundingBoxes))
            height, width = boxes.canvas_size
            short = self.min_size[int(torch.randint(len(self.min_size), ()))]
            scale = min(short / min(height, width), long_side / max(height, width))
            return {"size": (max(1, round(height * scale)), max(1, round(width * scale)))}

    change = 0.4 * augment["colour"]
    whole = v2.Compose(
        [
            IoUCrop(),
            Size(list(augment["short_sides"] or (short_side,))),
            v2.RandomHorizontalFlip(augment["horizontal_flip"]),
            v2.RandomVerticalFlip(augment["vertical_flip"]),
            v2.ColorJitter(change, change, change, 0.05 * augment["colour"]),
            v2.ClampBoundingBoxes(),
            DropEmptyBoxes(),
        ]
    )
    return lambda image, boxes, labels, others: whole(image, boxes, labels)


@pytest.mark.parametrize("sides", [None, (32, 40, 48)])
def test_old_configs_give_the_same_pictures_bit_for_bit(split, sides):
    said = {"iou_crop": 0.7, "short_sides": sides, "horizontal_flip": 0.5, "vertical_flip": 0.4, "colour": 0.8}
    new = DetectionDataset(split, training_transform(AugmentConfig(**said), 36, 56), 3)
    old = DetectionDataset(split, former(said, 36, 56), 3)
    for key in [(epoch, index) for epoch in range(4) for index in range(7)]:
        (image, target), (expected, truth) = new[key], old[key]
        assert image.equal(expected)
        assert target["boxes"].equal(truth["boxes"])
        assert target["labels"].equal(truth["labels"])


def test_steps_are_done_in_the_order_of_the_list(split):
    """A change of colour after the resizing is not that before it; without the one, the size comes last."""
    first = AugmentConfig.model_validate([{"colour": {"strength": 1}}, {"short_sides": {"sides": [30]}}])
    last = AugmentConfig.model_validate([{"short_sides": {"sides": [30]}}, {"colour": {"strength": 1}}])
    alone = AugmentConfig.model_validate([{"colour": {"strength": 1}}])
    images = [DetectionDataset(split, training_transform(a, 30, 99), 0)[0, 0][0] for a in (first, last, alone)]
    assert {image.shape for image in images} == {(3, 30, 40)}
    assert not images[0].equal(images[1])


@pytest.mark.parametrize("sides", [None, [32, 64]])
def test_antialias_of_the_model_holds_in_training_too(split, sides):
    augment = AugmentConfig(horizontal_flip=0, short_sides=sides)
    images = [
        DetectionDataset(split, training_transform(augment, 16, 99, antialias), 0)[0, 0][0]
        for antialias in (True, False)
    ]
    original = DetectionDataset(split, training_transform(augment, 16, 99), 0).samples[0][0]
    size = list(images[0].shape[1:])
    for image, antialias in zip(images, (True, False), strict=True):
        assert image.equal(v2.functional.resize(original, size, antialias=antialias).as_subclass(torch.Tensor))


class BesideConfig(Strict):
    gap: int = Field(default=3, ge=0)


class Beside:
    """Puts another image of the split to the right, as a mosaic of two: made of plain tensors."""

    def __init__(self, gap):
        self.gap = gap

    def __call__(self, image, boxes, labels, others):
        other, more, names = others[int(torch.randint(len(others), ()))]
        wide = torch.zeros(3, image.shape[1], 2 * image.shape[2] + self.gap, dtype=torch.uint8)
        wide[:, :, : image.shape[2]] = image
        wide[:, :, -other.shape[2] :] = other
        shift = torch.tensor([image.shape[2] + self.gap, 0.0] * 2)
        return wide, torch.cat([boxes, more + shift]), torch.cat([labels, names])


@pytest.fixture
def beside(monkeypatch):
    monkeypatch.setitem(STEPS, "beside", StepRow(BesideConfig, lambda settings, size: Beside(settings.gap)))


def test_a_step_of_ones_own_sees_other_images_alike_for_any_number_of_workers(split, beside):
    augment = AugmentConfig.model_validate([{"beside": {"gap": 5}}, {"flip": {"p": 0.5}}])
    dataset = DetectionDataset(split, training_transform(augment, 45, 125), 1)

    def batches(workers, start=0):
        return list(training_loader(dataset, 2, 2, 0, 1, 1, start, 7, workers))

    whole = batches(0)
    for found in (batches(1), batches(2), whole[:3] + batches(1, start=3)):
        for (images, targets), (others, truth) in zip(found, whole, strict=True):
            assert all(one.equal(other) for one, other in zip(images, others, strict=True))
            assert all(one["boxes"].equal(other["boxes"]) for one, other in zip(targets, truth, strict=True))
    assert {image.shape for images, _ in whole for image in images} == {(3, 45, 125)}
    counts = {len(target["boxes"]) for _, targets in whole for target in targets}
    assert counts == {2, 3, 4}  # of two images with one or two boxes each
    partners = {dataset[epoch, 0][0].float().mean().item() for epoch in range(6)}
    assert len(partners) > 2


def test_whatever_a_step_makes_of_the_size_the_model_gets_its_own(split, beside):
    augment = AugmentConfig.model_validate([{"short_sides": {"sides": [45]}}, {"beside": {}}])
    for index in range(4):
        image, target = DetectionDataset(split, training_transform(augment, 45, 70), 1)[0, index]
        assert max(image.shape[1:]) <= 70
        assert (target["boxes"][:, 2] <= image.shape[2]).all()


@pytest.mark.parametrize("start", [0, 17, 19])
def test_mosaics_close_for_the_last_tenth_of_a_run_wherever_it_is_resumed(split, start):
    augment = AugmentConfig.model_validate([{"mosaic": 1}, {"mixup": 1}, {"flip": 1}])
    assert [step.name for step in augment.closed.steps] == ["flip"]
    open_, closed = (training_transform(each, 45, 90) for each in (augment, augment.closed))
    alone = DetectionDataset(split, closed, 0)

    def mixed(length):
        """Steps with an image that more than flip was done to."""
        dataset = DetectionDataset(split, open_, 0, closed)
        loader = enumerate(training_loader(dataset, 2, 2, 0, 1, 0, start, length, 0), start=start)
        return [
            step
            for step, (images, targets) in loader
            if not all(i.equal(alone[step // 3, t["index"]][0]) for i, t in zip(images, targets, strict=True))
        ]

    assert mixed(20) == list(range(start, 18))
    assert mixed(40) == list(range(start, 36))  # the run is extended: they open again


def test_a_run_of_few_steps_has_no_last_tenth(split):
    augment = AugmentConfig.model_validate([{"mosaic": 1}])
    open_, closed = (training_transform(each, 45, 90) for each in (augment, augment.closed))
    found = list(training_loader(DetectionDataset(split, open_, 0, closed), 2, 2, 0, 1, 0, 0, 3, 0))
    expected = list(training_loader(DetectionDataset(split, open_, 0), 2, 2, 0, 1, 0, 0, 3, 0))
    assert all(
        a.equal(b) for one, other in zip(found, expected, strict=True) for a, b in zip(one[0], other[0], strict=True)
    )
