"""Every number of a Config has bounds: what no run could mean is refused, and the sentence names the key."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from doublehead.common.errors import DoubleheadError
from doublehead.config import Config
from doublehead.model.parts import BACKBONES, TRUNKS
from doublehead.training.recipes import resolve

MAY_BE_NEGATIVE = {"model.input.mean", "model.branches.0.background_offset"}
LISTS = {"model.cascade.early": [{"trunk": "fc", "classify": 1, "regress": 1}]}
"""Lists of sections that no model of this test has."""
SCORES_OF_EARLY_STAGES = {f"model.cascade.early.0.{name}" for name in ("temperature", "background_offset")}
"""Refused whatever their value: see tests/model/test_cascade.py."""
SECTIONS = {"model.backbone": {row.section: row.config for row in BACKBONES.values() if row.section}} | {
    "model": {f"{name}_head": row.config for name, row in TRUNKS.items()}
}


def numbers(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """The keys of all numeric fields, and whether each holds a list of numbers."""
    fields = {name: field.annotation for name, field in model.model_fields.items()}
    fields |= SECTIONS.get(prefix.removesuffix("."), {})
    for name, annotation in fields.items():
        kinds = set(flat(annotation))
        (part,) = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)] or [None]
        many = any(get_origin(a) is tuple for a in (annotation, *get_args(annotation)))
        if part is not None:
            yield from numbers(part, f"{prefix}{name}.{'0.' if many else ''}")
        elif kinds & {int, float}:
            yield prefix + name, many


def flat(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    for inner in get_args(annotation):
        yield from flat(inner)
    if not get_args(annotation):
        yield annotation


NUMBERS = {key: many for key, many in numbers(Config) if key not in SCORES_OF_EARLY_STAGES}


def changed(key: str, number: float) -> dict[str, Any]:
    """The setting with this number, alone or as the first of a list that is otherwise in order."""
    if not NUMBERS[key]:
        return {name: value for name, value in LISTS.items() if key.startswith(name)} | {key: number}
    part: Any = resolve("double-head-tiny")
    for name in key.split("."):
        part = getattr(part, name, None)  # none of a part that is off
    return {key: [number, *(part or ())[1:]]}


def test_the_walk_finds_what_there_is():
    assert {
        "model.branches.0.roi_scale",
        "model.input.std",
        "model.backbone.resnet.norm_eps",
        "model.conv_head.width",
        "model.rpn.aspect_ratios",
        "train.clip_norm",
        "train.milestones",
        "data.timeout",
    } <= NUMBERS.keys()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), -1], ids=str)
@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_that_mean_nothing_are_refused(key, number):
    if key in MAY_BE_NEGATIVE and number == -1:
        resolve("double-head-tiny", settings=changed(key, number))
    else:
        with pytest.raises(DoubleheadError, match=f"`{key}"):
            resolve("double-head-tiny", settings=changed(key, number))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.input.std", [0, 0, 0]),
        ("model.roi.positive_fraction", 5),
        ("model.roi.positive_fraction", 0),
        ("model.rpn.positive_fraction", 0),
        ("model.rpn.aspect_ratios", [0]),
        ("model.rpn.anchor_sizes", [0, 64, 128, 256, 512]),
        ("model.rpn.foreground_iou", 7),
        ("model.rpn.nms_iou", 1.5),
        ("model.roi.foreground_iou", 1.5),
        ("model.rpn.before_nms_inference", 0),
        ("model.rpn.proposals_training", 0),
        ("model.rpn.depth", 0),
        ("model.fc_head.width", 10**30),
        ("train.momentum", 9),
        ("train.milestones", [5, -1]),
        ("train.milestones", [0.8, 0.5]),
        ("train.milestones", [0.5, 0.5]),
        ("train.timeout", 1e12),
        ("data.timeout", 1e12),
    ],
)
def test_numbers_out_of_bounds_are_refused(key, value):
    with pytest.raises(DoubleheadError, match=f"`{key}"):
        resolve("double-head-tiny", settings={key: value})


@pytest.mark.parametrize("sides", [[], [0]])
def test_options_of_augmentation_out_of_bounds_are_refused(sides):
    with pytest.raises(DoubleheadError, match=r"`data.augment.*short_sides.*`sides"):
        resolve("double-head-tiny", settings={"data.augment.short_sides": sides})
