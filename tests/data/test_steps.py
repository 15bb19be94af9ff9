"""Every step: boxes follow pixels, labels follow boxes, nothing is lost, and any image passes."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from doublehead.data.loader import DetectionDataset, training_loader
from doublehead.data.records import Categories, Findings, Record, Split
from doublehead.data.steps import PRESETS, STEPS, AugmentConfig
from doublehead.data.transforms import training_transform

ALWAYS = {
    "iou_crop": {"p": 1},
    "short_sides": {"sides": [90, 120]},
    "lsj": {"size": 128, "visible": 0},
    "flip": {"p": 1},
    "vertical_flip": {"p": 1},
    "rotate90": {"p": 1},
    "affine": {"p": 1, "degrees": 10, "visible": 0},
    "mosaic": {"p": 1, "scale": [0.6, 1], "visible": 0},
    "mixup": {"p": 1},
    "copy_paste": {"p": 1, "feather": 0},
    "colour": {"strength": 0.3},
    "blur": {"p": 1, "sigma": [0.3, 1]},
    "jpeg": {"p": 1, "quality": [80, 95]},
    "erasing": {"p": 1, "area": [0.02, 0.1]},
}
"""Each step, certain to act."""
HIDES = {"mixup", "copy_paste", "erasing"}
"""Steps after which something may lie over an object."""
BLURS = {"affine", "jpeg", "blur"}
COLOURS = 12
BOXES = ((8, 6, 44, 40), (60, 12, 104, 38), (20, 52, 90, 88))
SHAPES = [(x2 - x1) / (y2 - y1) for x1, y1, x2, y2 in BOXES]


def test_each_step_is_looked_at_here():
    assert ALWAYS.keys() | {"use"} == STEPS.keys()


def colour(label: int) -> np.ndarray:
    """One of `COLOURS` hues."""
    return np.array(colorsys.hsv_to_rgb(label / COLOURS, 1, 1)) * 255


def painted(path, number, width=120, height=96, boxes=BOXES):
    """A grey image with each box filled in the colour of its label; labels differ from image to image."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    labels = [1 + (number * len(boxes) + i) % COLOURS for i in range(len(boxes))]
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        pixels[y1:y2, x1:x2] = colour(label)
    path = path / f"{number}.png"
    Image.fromarray(pixels).save(path)
    return Record.of(number, path, (width, height), boxes, labels)


def split_of(records) -> Split:
    names = tuple(f"hue {label}" for label in range(1, COLOURS + 1))
    return Split("train", records, Categories(names, tuple(range(1, COLOURS + 1))), Findings())


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("painted")
    return split_of([painted(folder, number) for number in range(4)])


def made(split, *steps, side=96, seed=3, **more):
    augment = AugmentConfig.model_validate(list(steps), **more)
    return DetectionDataset(split, training_transform(augment, side, 3 * side), seed)


def extents(image, label, exactly=False):
    """Where an image shows a label's colour, or its hue: x1, y1, x2, y2; None: nowhere."""
    pixels = image.permute(1, 2, 0).double().numpy() - 128
    want = colour(label) - 128
    strength = np.linalg.norm(pixels, axis=2)
    alike = (pixels @ want) / np.maximum(strength * np.linalg.norm(want), 1e-9)
    shown = np.abs(pixels - want).max(2) < 2 if exactly else (alike > 0.97) & (strength > 60)
    rows, columns = np.nonzero(shown)
    if not len(rows):
        return None
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("name", ALWAYS)
def test_boxes_follow_pixels(split, name):
    dataset, seen = made(split, {name: ALWAYS[name]}), 0
    for epoch in range(6):
        for index in range(len(split.records)):
            image, target = dataset[epoch, index]
            labels = target["labels"].tolist()
            for box, label in zip(target["boxes"].numpy(), labels, strict=True):
                found = extents(image, label, exactly=name == "erasing")  # not its noise
                if labels.count(label) > 1 or found is None or name == "mixup":
                    continue
                slack = 2.5 if name in BLURS else 1.6
                outside = np.array([box[0] - found[0], box[1] - found[1], found[2] - box[2], found[3] - box[3]])
                assert outside.max() < slack, (epoch, index, box, found)
                if name not in HIDES:
                    assert outside.min() > -slack, (epoch, index, box, found)
                seen += 1
    assert seen > 20 or name == "mixup"


def test_mixup_shows_both_images_where_their_boxes_are(split):
    """Half of one colour and half of another: each box still differs from what is around it."""
    dataset = made(split, {"mixup": {"p": 1, "alpha": 1e4}})
    for epoch in range(4):
        image, target = dataset[epoch, 0]
        own = dataset.samples[0][2].tolist()
        assert target["labels"].tolist()[: len(own)] == own
        assert len(target["labels"]) == 2 * len(own)
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            x1, y1, x2, y2 = box.round().int().tolist()
            blend = (colour(label) - 128) / 2  # in every pixel of the box, whatever lies over it
            inside = image[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].double().flatten(1).numpy() - 128
            rest = inside - blend[:, None]
            others = np.stack([(colour(each) - 128) / 2 for each in [*range(1, COLOURS + 1)]] + [np.zeros(3)])
            gaps = np.abs(rest.T[:, None] - others[None]).max(2).min(1)
            assert np.quantile(gaps, 0.9) < 6


@pytest.mark.parametrize("step", [{name: settings} for name, settings in ALWAYS.items()], ids=list(ALWAYS))
def test_any_image_passes(tmp_path, step):
    """Of one pixel, of one row, without boxes; beside each other as partners."""
    sizes = [(1, 1), (1, 90), (90, 1), (3, 3), (40, 30)]
    records = []
    for number, (width, height) in enumerate(sizes):
        boxes = [(0, 0, width, height)] if number % 2 == 0 else []
        records.append(painted(tmp_path, number, width, height, boxes))
    dataset = made(split_of(records), step, side=32)
    for epoch in range(6):
        for index in range(len(sizes)):
            image, target = dataset[epoch, index]
            assert image.dtype == torch.uint8
            assert min(image.shape) >= 1
            boxes = target["boxes"]
            assert boxes.shape == (len(target["labels"]), 4)
            assert torch.isfinite(boxes).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert (boxes[:, 2:] <= torch.tensor([image.shape[2], image.shape[1]])).all()


@pytest.mark.parametrize("name", ["flip", "vertical_flip", "rotate90", "mixup", "copy_paste", "colour", "blur", "jpeg"])
def test_steps_that_cut_nothing_lose_no_box(split, name):
    dataset = made(split, {name: ALWAYS[name]})
    for epoch in range(4):
        for index in range(len(split.records)):
            labels = dataset[epoch, index][1]["labels"].tolist()
            own = split.records[index].labels.tolist()
            assert labels[: len(own)] == own
            if name not in ("mixup", "copy_paste"):
                assert len(labels) == len(own)


def test_pasted_objects_cover_no_box_by_more_than_the_limit(split):
    dataset = made(split, {"copy_paste": {"p": 1, "objects": 6, "covered": 0.2, "scale": [0.5, 1], "feather": 0}})
    pasted = 0
    for epoch in range(8):
        image, target = dataset[epoch, 0]
        own = len(split.records[0].labels)
        pasted += len(target["labels"]) - own
        for box, label in zip(target["boxes"][:own], target["labels"][:own].tolist(), strict=True):
            if target["labels"].tolist().count(label) > 1:
                continue
            x1, y1, x2, y2 = box.int().tolist()
            near = np.abs(image[:, y1:y2, x1:x2].double().permute(1, 2, 0).numpy() - colour(label)).max(2)
            assert (near < 20).mean() >= 0.8 - 0.05
    assert pasted > 8


@pytest.mark.parametrize("visible", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["iou_crop", "lsj", "affine", "mosaic"])
def test_the_share_of_a_box_that_must_remain_is_a_setting(split, name, visible):
    """With 1, boxes that the image's edge cuts are gone; with 0, each sliver keeps its box."""
    settings = ALWAYS[name] | {"visible": visible} | ({"scale": [1.5, 2]} if name == "lsj" else {})
    dataset, cut = made(split, {name: settings}), 0
    for epoch in range(12):
        for index in range(len(split.records)):
            image, target = dataset[epoch, index]
            limit = torch.tensor([image.shape[2], image.shape[1]] * 2)
            touching = ((target["boxes"] < 1e-3) | (target["boxes"] > limit - 1e-3)).any(1)
            width, height = (target["boxes"][:, 2:] - target["boxes"][:, :2]).unbind(1)
            whole = torch.tensor([SHAPES[(label - 1) % 3] for label in target["labels"].tolist()])
            cut += int((touching & ((width / height / whole - 1).abs() > 0.03)).sum())
    assert (cut > 0) == (visible < 1)


def test_any_number_of_workers_and_any_start_give_the_same_images(split):
    steps = [{name: settings} for name, settings in ALWAYS.items() if name != "short_sides"]
    dataset = made(split, *steps, side=48)

    def batches(workers, start=0):
        return list(training_loader(dataset, 2, 2, 0, 1, 3, start, 8, workers))

    whole = batches(0)
    for found in (batches(2), whole[:5] + batches(1, start=5)):
        for (images, targets), (others, truth) in zip(found, whole, strict=True):
            assert all(one.equal(other) for one, other in zip(images, others, strict=True))
            assert all(one["boxes"].equal(other["boxes"]) for one, other in zip(targets, truth, strict=True))
            assert all(one["labels"].equal(other["labels"]) for one, other in zip(targets, truth, strict=True))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_give_what_the_model_takes(split, preset):
    dataset = DetectionDataset(split, training_transform(AugmentConfig.model_validate(preset), 40, 60), 0)
    for epoch in range(5):
        image, target = dataset[epoch, 1]
        assert min(image.shape[1:]) == 40 or max(image.shape[1:]) == 60
        assert len(target["boxes"]) == len(target["labels"])
    first, second = dataset[0, 1][0], dataset[1, 1][0]
    assert first.equal(second) == (preset == "none")


def test_lsj_gives_squares_of_the_side_asked_for(split):
    sides = set()
    for settings, shape in [({"size": 64}, (3, 64, 64)), ({}, (3, 160, 160))]:
        dataset = made(split, {"lsj": settings}, {"flip": {"p": 0.5}})  # short side 96, long side 288
        for epoch in range(6):
            image, target = dataset[epoch, 0]
            assert image.shape == shape
            sides |= {round(float(side)) for side in target["boxes"][:, 2] - target["boxes"][:, 0]}
    assert max(sides) > 4 * min(sides)  # scales from 0.1 to 2
