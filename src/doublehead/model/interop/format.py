"""Another implementation's weights: a table of keys that reads both ways, and the conventions it computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from doublehead.common.errors import DoubleheadError, sentence
from doublehead.config import ModelConfig, merge, override
from doublehead.model.detector import Detector
from doublehead.model.resnet import RESNETS
from doublehead.model.stages import CONVENTIONS as CASCADES

Weights = dict[str, Tensor]
Table = tuple[tuple[str, str], ...]

MANY = range(16)
"""Enough for layers that are numbered in a table."""

BODY = "backbone.body."


def branch_of(stage: int) -> str:
    """How the keys of the branches of a box head begin, counted from 0."""
    return f"roi_heads.heads.{stage}.branches."


BRANCH = branch_of(0)

ONE_STAGE: dict[str, Any] = {"cascade": None}
"""The convention of detectors with one box head."""


def cascade_conventions(program: str) -> dict[str, Any]:
    """What a program's cascade computes with, once it is trained."""
    usual = CASCADES[program]
    return {"cascade": {key: usual[key] for key in ("deviations", "scores")}}


def exchange_colours(weights: Weights, stem: str) -> Weights:
    """The same with RGB for BGR, or the other way round, in the first convolution, if it is there."""
    return weights | ({stem: weights[stem].flip(1)} if stem in weights else {})


def _as_it_is(weights: Weights) -> tuple[Weights, dict[str, Any]]:
    return weights, {}


def _as_it_was(weights: Weights, config: ModelConfig) -> Weights:
    return weights


@dataclass(frozen=True)
class Format:
    """A published detector for which one of ours can stand.

    Conventions that a permutation of the weights undoes (where the background stands, the order of colours) are undone
    by `laid_out`, so that the model knows nothing of them. The others are fields of ModelConfig: `conventions`.
    """

    name: str
    marker: str  # how one of their keys begins that no other format has
    table: Table  # how their keys begin, and ours, one to one
    conventions: Mapping[str, Any]  # nested values of ModelConfig without which the weights compute something else
    defaults: Mapping[str, Any]  # other values of ModelConfig, the branches among them
    laid_out: Callable[[Weights], tuple[Weights, dict[str, Any]]] = _as_it_is
    """Their weights in our layout, under their keys, and what only the layout told of the ModelConfig."""
    laid_back: Callable[[Weights, ModelConfig], Weights] = _as_it_was
    """The inverse of `laid_out`."""
    masks: tuple[str, ...] = ()
    """How the keys of a mask head begin, which is left out."""

    def config(self, settings: Mapping[str, Any]) -> ModelConfig:
        """That of a published model whose weights are not there.

        Args:
            settings: values that differ from the defaults, by their keys.
        """
        return ModelConfig.model_validate(override(merge(dict(self.conventions), dict(self.defaults)), settings))

    def recognises(self, keys: Iterable[str]) -> bool:
        """Whether weights with these keys are of this format."""
        return any(key.startswith(self.marker) for key in keys)

    def load(self, weights: Weights, settings: Mapping[str, Any]) -> tuple[ModelConfig, int, Weights]:
        """The ModelConfig, read off the weights; the number of classes; and our weights.

        Args:
            weights: theirs.
            settings: values of ModelConfig that shall differ, by their keys, such as {"rpn.nms_iou": 0.6}.

        Raises:
            DoubleheadError: keys are missing or left over, or a shape does not fit.
        """
        theirs, told = self.laid_out({key: value for key, value in weights.items() if not key.startswith(self.masks)})
        names = {key: _renamed(key, self.table) for key in theirs}
        ours = {name: theirs[key] for key, name in names.items() if name}
        values = merge(merge(dict(self.conventions), dict(self.defaults)), told)
        config = ModelConfig.model_validate(override(merge(values, _read_off(ours)), settings))
        classes = _rows(ours, "classifier", 2) - 1
        with torch.device("meta"):
            wanted = Detector(config, classes).state_dict()
        back = _turned(self.table)
        missing = [_renamed(key, back) or key for key in wanted if key not in ours]
        left_over = [key for key, name in names.items() if name not in wanted]
        if missing or left_over:
            raise DoubleheadError(
                f"is an incomplete {self.name}: {_listed('missing', missing, 'unexpected', left_over)}"
            )
        for key, name in names.items():
            assert name is not None
            if theirs[key].shape != wanted[name].shape:
                shapes = f"{tuple(theirs[key].shape)} where {tuple(wanted[name].shape)} is wanted"
                raise DoubleheadError(f"is an inconsistent {self.name}: {key} has the shape {shapes}")
        return config, classes, {key: ours[key] for key in wanted}

    def save(self, config: ModelConfig, weights: Weights) -> Weights:
        """Their weights from ours: the inverse of `load`.

        Raises:
            DoubleheadError: the model computes what theirs cannot.
        """
        back = _turned(self.table)
        names = {key: _renamed(key, back) for key in weights}
        left_over = [key for key, name in names.items() if name is None]
        if left_over:
            raise DoubleheadError(f"has keys that {self.name} lacks: {_listed('unexpected', left_over)}")
        result = self.laid_back({name: weights[key] for key, name in names.items() if name}, config)
        if not self.recognises(result):
            raise DoubleheadError(f"is not a {self.name}")
        try:
            read_again, *_ = self.load(result, {})
        except ValidationError as error:
            raise DoubleheadError(f"is not a {self.name}: {sentence(error)}") from error
        for key in _flat(self.conventions):
            own, theirs = (_value(c.model_dump(mode="json"), key) for c in (config, read_again))
            if own != theirs:
                raise DoubleheadError(f"computes with {key}={own}, {self.name} with {theirs}")
        return result


def background_first(weights: Weights, scores: str, boxes: str) -> Weights:
    """The class scores' last row, the background, as the first; and boxes for it, unless they are class-agnostic.

    Args:
        weights: theirs.
        scores: how the keys of the classifier begin.
        boxes: how the keys of the regressor begin.
    """
    result = dict(weights)
    for part in ("weight", "bias"):
        score, box = scores + part, boxes + part
        if score in result:
            result[score] = result[score].roll(1, 0)
        if box in result and len(result[box]) > 4:
            result[box] = torch.cat([torch.zeros_like(result[box][:4]), result[box]])
    return result


def background_last(weights: Weights, scores: str, boxes: str, class_agnostic: bool) -> Weights:
    """The inverse of `background_first`."""
    result = dict(weights)
    for part in ("weight", "bias"):
        if scores + part in result:
            result[scores + part] = result[scores + part].roll(-1, 0)
        if boxes + part in result and not class_agnostic:
            result[boxes + part] = result[boxes + part][4:]
    return result


def _turned(table: Table) -> Table:
    return tuple((ours, theirs) for theirs, ours in table)


def _renamed(key: str, table: Table) -> str | None:
    return next((new + key.removeprefix(old) for old, new in table if key.startswith(old)), None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return result


def _value(values: Any, key: str) -> Any:
    """The value under a key such as `roi.aligned`; None where there is no such section."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _listed(*lists: Any) -> str:
    parts = []
    for what, keys in zip(lists[::2], lists[1::2], strict=True):
        if keys:
            parts.append(f"{what}: {', '.join(keys[:10])}{f' and {len(keys) - 10} more' if len(keys) > 10 else ''}")
    return "; ".join(parts)


def _rows(ours: Weights, predictor: str, default: int) -> int:
    return next((len(v) for k, v in ours.items() if k.endswith(f".{predictor}.bias")), default)


def _read_off(ours: Weights) -> dict[str, Any]:
    """Depth, widths, number and kind of blocks; what is missing stays at its default."""
    parts = ("backbone", "fpn", "rpn", "fc_head", "conv_head", "convfc_head", "roi")
    values: dict[str, Any] = {part: {} for part in parts}

    def read(part: dict[str, Any], field: str, key: str) -> None:
        if key in ours:
            part[field] = len(ours[key])

    stages = tuple(_count(ours, f"{BODY}layer{stage}.") for stage in (1, 2, 3, 4))
    basic = f"{BODY}layer1.0.conv3.weight" not in ours
    depths = {blocks: name for name, (blocks, basic_blocks) in RESNETS.items() if basic_blocks == basic}
    if all(stages):
        if stages not in depths:
            raise DoubleheadError(f"has a ResNet of {stages} blocks; the ones known are {', '.join(RESNETS)}")
        values["backbone"] = {"name": depths[stages], "resnet": {}}
        read(values["backbone"]["resnet"], "width", f"{BODY}conv1.weight")
    read(values["fpn"], "channels", "backbone.fpn.inner_blocks.0.0.weight")
    if "backbone.fpn.inner_blocks.0.1.running_var" in ours:
        values["fpn"]["norm"] = "batch"
    values["rpn"]["depth"] = max(1, _count(ours, "rpn.head.conv."))
    for branch in range(_count(ours, BRANCH)):
        trunk = f"{BRANCH}{branch}.trunk."
        layers, blocks, convs = f"{trunk}layers.", f"{trunk}blocks.", f"{trunk}convs."
        head = values["convfc_head" if _count(ours, convs) else "fc_head"]
        if count := _count(ours, convs):
            head["convs"] = count
            read(head, "conv_width", f"{convs}0.0.weight")
        if count := _count(ours, layers):
            head["layers"] = count
            read(head, "width", f"{layers}0.weight")
        kinds = [_kind(ours, f"{blocks}{n}.") for n in range(_count(ours, blocks))]
        if kinds:
            values["conv_head"]["blocks"] = kinds
            read(values["conv_head"], "width", f"{blocks}0.skip.weight")
        for n, kind in enumerate(kinds):
            if kind == "bottleneck":
                read(values["conv_head"], "bottleneck_width", f"{blocks}{n}.conv1.weight")
            if kind == "non-local":
                read(values["conv_head"], "non_local_width", f"{blocks}{n}.theta.weight")
    values["roi"]["class_agnostic"] = _rows(ours, "regressor", 0) == 4
    return {part: read_off for part, read_off in values.items() if read_off}


def _kind(ours: Weights, block: str) -> str:
    if f"{block}skip.weight" in ours:
        return "up"
    return "non-local" if f"{block}theta.weight" in ours else "bottleneck"


def _count(ours: Weights, prefix: str) -> int:
    """How many layers are numbered from 0 after the prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in ours if key.startswith(prefix)})
