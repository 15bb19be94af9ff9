"""Every setting of a run, with its meaning and its default. Unknown keys are refused.

A run is a `Config`: `model` (what is built), `data` (how images reach it) and `train` (how it learns).
`model` travels in each checkpoint; the whole `Config` is written into the run folder.
"""

from __future__ import annotations

import copy
import os.path
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from doublehead.common.errors import DoubleheadError
from doublehead.common.errors import sentence as sentence
from doublehead.common.strict import Strict
from doublehead.common.tables import row_of
from doublehead.data.steps import AugmentConfig
from doublehead.training.recorders import RECORDERS

Block = Literal["up", "bottleneck", "non-local"]

LOADER_TIMEOUT = 300.0
"""Seconds that loading one batch may take before the disk, or a process that loads, is taken to hang."""

CONV_HEAD_FORMS: dict[str, tuple[Block, ...]] = {
    "paper": ("up", "non-local", "bottleneck", "non-local", "bottleneck"),
    "mmdetection": ("up", "bottleneck", "bottleneck", "bottleneck", "bottleneck"),
}


class BranchConfig(Strict):
    """One branch of a box head: a trunk, and the weight of each task in its loss (paper, section 4)."""

    trunk: Literal["fc", "conv"]
    classify: float = Field(ge=0, description="Weight of the classification loss; 0: no such predictor.")
    regress: float = Field(ge=0, description="Weight of the box regression loss; 0: no such predictor.")
    roi_scale: float | None = Field(
        default=None, gt=0, description="Enlarges each RoI about its centre; None: 1.0 for fc, 1.3 for conv."
    )

    @model_validator(mode="after")
    def _learns_something(self) -> BranchConfig:
        if self.classify == 0 and self.regress == 0:
            raise ValueError("a branch must classify or regress: give one of its weights a value above 0")
        return self

    @property
    def scale(self) -> float:
        """The RoI scale in force."""
        return self.roi_scale or {"fc": 1.0, "conv": 1.3}[self.trunk]

    @property
    def only_regresses(self) -> bool:
        """Whether proposals without an object mean nothing to this branch."""
        return self.classify == 0


class BackboneConfig(Strict):
    """ResNet with a feature pyramid."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    norm: Literal["frozen", "batch", "group"] = Field(
        default="frozen", description="frozen: BatchNorm with fixed statistics; batch or group: from scratch."
    )
    weights: str | None = Field(
        default="imagenet",
        description="imagenet: torchvision's, downloaded once; a path to a .pth or .safetensors file; or null.",
    )
    trainable_stages: int = Field(default=3, ge=0, le=5, description="How many of the 5 stages learn, last first.")
    width: int = Field(default=64, ge=1, description="Channels of the stem; those of the stages follow.")
    stride_in: Literal["3x3", "1x1"] = Field(
        default="3x3",
        description="Which convolution of a bottleneck has the stride: 3x3 (torchvision), 1x1 (the authors).",
    )
    norm_eps: float = Field(default=1e-5, ge=0, description="Added to the variance in frozen and batch norm.")
    fpn_channels: int = Field(default=256, ge=1)


class FCHeadConfig(Strict):
    """The fc-head: flatten, then fully connected layers with ReLU."""

    layers: int = Field(default=2, ge=1)
    width: int = Field(default=1024, ge=1)


class ConvHeadConfig(Strict):
    """The conv-head: blocks at 7x7, then global average pooling."""

    blocks: tuple[Block, ...] = Field(
        default=CONV_HEAD_FORMS["paper"], description="A list of blocks, or the form `paper` or `mmdetection`."
    )
    width: int = Field(default=1024, ge=1)
    bottleneck_width: int = Field(default=256, ge=1)
    non_local_width: int = Field(default=512, ge=1)
    non_local_groups: int = Field(default=4, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _named_form(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("blocks"), str):
            if values["blocks"] not in CONV_HEAD_FORMS:
                raise ValueError(f"blocks is a list, or one of {', '.join(CONV_HEAD_FORMS)}")
            return {**values, "blocks": CONV_HEAD_FORMS[values["blocks"]]}
        return values

    @model_validator(mode="after")
    def _fits(self) -> ConvHeadConfig:
        if not self.blocks or self.blocks[0] != "up" or "up" in self.blocks[1:]:
            raise ValueError("blocks must begin with `up`, which widens the RoI features, and hold no other `up`")
        if self.non_local_width % self.non_local_groups:
            raise ValueError("non_local_width must be a multiple of non_local_groups")
        return self


class RPNConfig(Strict):
    """The region proposal network (torchvision's), with the recipe's numbers."""

    anchor_sizes: tuple[float, ...] = Field(
        default=(32, 64, 128, 256, 512), min_length=5, max_length=5, description="One size for each of P2..P6."
    )
    aspect_ratios: tuple[float, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    anchors: Literal["torchvision", "mmdetection", "authors"] = Field(
        default="torchvision", description="Whose way of rounding and placing anchors."
    )
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    sampled: int = Field(default=256, ge=1, description="Anchors sampled per image for the loss.")
    positive_fraction: float = 0.5
    nms_iou: float = 0.7
    before_nms_training: int = Field(default=2000, description="Proposals kept per level before NMS.")
    before_nms_inference: int = Field(default=1000, description="Proposals kept per level before NMS.")
    proposals_training: int = Field(default=2000, description="Proposals kept per image after NMS.")
    proposals_inference: int = Field(default=1000, description="Proposals kept per image after NMS.")
    smallest_side: float = Field(
        default=1e-3, ge=0, description="Proposals with a side under it, in pixels, are dropped."
    )

    @model_validator(mode="after")
    def _background_below(self) -> RPNConfig:
        if not self.background_iou <= self.foreground_iou:
            raise ValueError("background_iou must not lie above foreground_iou")
        return self


class RoIConfig(Strict):
    """Sampling of proposals, which of them a regress-only branch sees, and post-processing."""

    sampled: int = Field(default=512, ge=1, description="Proposals sampled per image in training.")
    positive_fraction: float = 0.25
    foreground_iou: float = 0.5
    training_proposals: Literal["positives", "all"] = Field(
        default="positives", description="What a branch that only regresses sees in training."
    )
    inference_proposals: Literal["owners", "all"] = Field(
        default="owners",
        description="What a branch that gives only boxes sees at inference: owners of candidate detections, or all.",
    )
    score_branch: str | None = Field(
        default=None, description="The one branch whose class scores count, such as fc; None: all of them, fused."
    )
    box_branch: str | None = Field(
        default=None,
        description="The branch that gives the boxes, such as conv; None: that of the largest regress weight.",
    )
    fusion: Literal["complementary", "average", "maximum"] = Field(
        default="complementary", description="How the scores of several classifying branches become one (paper, 4.3)."
    )
    score_floor: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Of several branches whose scores are fused, the later ones see only proposals to which the first "
        "gives some class a score above it; the others are dropped. 0: they see all.",
    )
    class_agnostic: bool = Field(default=False, description="One box per proposal rather than one per class.")
    sampling_ratio: int = Field(
        default=2, ge=0, description="RoIAlign's sampling points per bin and side; 0: adaptive."
    )
    aligned: bool = Field(default=False, description="Whether RoIAlign shifts coordinates by half a pixel.")
    score_threshold: float = Field(default=0.05, ge=0, le=1)
    nms_iou: float = Field(default=0.5, ge=0, le=1)
    detections: int = Field(default=100, ge=1, description="Best detections kept per image.")
    smallest_side: float = Field(
        default=1e-2, ge=0, description="Detections with a side under it, in pixels, are dropped."
    )


class InputConfig(Strict):
    """How an image becomes the network's input."""

    short_side: int = Field(default=800, ge=32, description="Images are resized to this short side,")
    long_side: int = Field(default=1333, ge=32, description="unless the long side would pass this.")
    antialias: bool = Field(default=True, description="Whether resizing averages what it makes smaller.")
    mean: tuple[float, float, float] = Field(default=(0.485, 0.456, 0.406), description="Of RGB in 0..1.")
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class ModelConfig(Strict):
    """What is built. `doublehead models` lists the presets."""

    preset: str = Field(default="custom", description="The preset this came from, for people to read.")
    branches: tuple[BranchConfig, ...] = Field(min_length=1)
    input: InputConfig = InputConfig()
    backbone: BackboneConfig = BackboneConfig()
    rpn: RPNConfig = RPNConfig()
    roi: RoIConfig = RoIConfig()
    fc_head: FCHeadConfig = FCHeadConfig()
    conv_head: ConvHeadConfig = ConvHeadConfig()
    head_norm: Literal["batch", "group"] = Field(default="batch", description="Norm of the conv-head's blocks.")
    inclusive_pixels: bool = Field(
        default=False, description="Whether RoIs are pooled, clipped and resized as boxes that end at their last pixel."
    )

    @model_validator(mode="after")
    def _both_tasks(self) -> ModelConfig:
        if not any(b.classify for b in self.branches) or not any(b.regress for b in self.branches):
            raise ValueError("branches: one of them must classify and one must regress")
        for field, name in (("score_branch", self.roi.score_branch), ("box_branch", self.roi.box_branch)):
            task = {"score_branch": "classify", "box_branch": "regress"}[field]
            able = [n for n, b in zip(self.branch_names, self.branches, strict=True) if getattr(b, task)]
            if name is not None and name not in able:
                raise ValueError(f"roi.{field}: no branch `{name}` can {task}; choose {' or '.join(able)}")
        return self

    @property
    def branch_names(self) -> tuple[str, ...]:
        """A short name for each branch: its trunk, numbered where there are several of a kind."""
        trunks = [b.trunk for b in self.branches]
        return tuple(t if trunks.count(t) == 1 else f"{t}{trunks[: i + 1].count(t)}" for i, t in enumerate(trunks))


def absolute(path: str) -> str:
    """The path as it is from any folder, so that a run can be resumed from another one."""
    return str(Path(os.path.expanduser(path)).absolute())


class DataConfig(Strict):
    """How images reach the model."""

    path: str = Field(default="", description="The dataset: a folder, or a YAML file that names its splits.")
    train_split: str = "train"
    val_split: str | None = Field(default="val", description="Split measured during training; null: none.")
    augment: AugmentConfig = Field(
        default=AugmentConfig(), description="Steps in order, such as [{flip: {p: 0.5}}, {colour: {strength: 0.3}}]."
    )
    workers: int | None = Field(default=None, ge=0, description="Loader processes per rank; None: by the cores.")
    timeout: float = Field(
        default=LOADER_TIMEOUT, ge=0, description="Longest wait for a batch from a loader process, in seconds; 0: none."
    )
    check: Literal["decode", "header", "none"] = Field(
        default="decode", description="How every image is looked at before training starts."
    )

    @field_validator("path")
    @classmethod
    def _from_anywhere(cls, path: str) -> str:
        return path and absolute(path)


class TrainConfig(Strict):
    """How the model learns."""

    weights: str | None = Field(
        default=None, description="A checkpoint to start from; predictors of classes that differ start anew."
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.02, gt=0, description="Peak learning rate, for `batch_size` images a step.")
    momentum: float = 0.9
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = Field(
        default=(2 / 3, 8 / 9), description="`steps`: where the rate falls tenfold, as fractions of the run."
    )
    warmup_steps: int = Field(default=500, ge=0)
    warmup_start: float = Field(default=1 / 3, ge=0, le=1, description="First rate, as a fraction of the peak.")
    steps: int | None = Field(default=90_000, ge=1, description="Length of the run in optimiser steps,")
    epochs: float | None = Field(default=None, gt=0, description="or in epochs. Exactly one of the two is set.")
    batch_size: int = Field(default=16, ge=1, description="Images per step, over all ranks and accumulation.")
    accumulate: int = Field(default=1, ge=1, description="Forward passes per step, to save memory.")
    clip_norm: float | None = Field(default=None, gt=0, description="Largest norm of the gradient; null: no limit.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where the device computes in it, otherwise fp32."
    )
    ema: float | None = Field(default=None, gt=0, lt=1, description="Decay of the weights' moving average; null: none.")
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1")
    evaluate_every: float | None = Field(
        default=None, gt=0, description="Epochs between measurements on the val split; null: a twentieth of the run."
    )
    save_minutes: float = Field(default=10.0, gt=0, description="Longest time between two savings of `last`.")
    skip_not_finite: int = Field(
        default=0, ge=0, description="Steps skipped for a loss or gradient that is not finite before the run ends."
    )
    timeout: float = Field(default=1800.0, gt=0, description="Longest wait for another process of the run, in seconds.")
    sync_batch_norm: bool = Field(
        default=False, description="Share the backbone's batch statistics among the processes of a run; needs CUDA."
    )
    log_every: int = Field(default=20, ge=1, description="Steps between rows of training.csv.")
    recorders: tuple[str, ...] = Field(default=("csv",), description="Rows of RECORDERS that follow the run.")

    @field_validator("weights")
    @classmethod
    def _from_anywhere(cls, path: str | None) -> str | None:
        return path and absolute(path)

    @field_validator("recorders")
    @classmethod
    def _known(cls, recorders: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(row_of("recorder", name, RECORDERS) for name in dict.fromkeys(recorders))

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give the run's length as steps or as epochs, and set the other to null")
        return self


class Config(Strict):
    """A whole run."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()


def parse_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """What --set was given, `a.b=c` each, as settings; c is read as YAML.

    Raises:
        DoubleheadError: an assignment has no `=`, or its value is not YAML.
    """
    settings = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise DoubleheadError(f"--set {assignment}: write it as key=value, such as train.epochs=10")
        try:
            settings[key.strip()] = yaml.safe_load(text)
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise DoubleheadError(f"--set {assignment}: `{text}` cannot be read as a YAML value") from error
    return settings


def override(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested `values` with settings such as {"model.branches.0.roi_scale": 1.2} made.

    Raises:
        DoubleheadError: a key goes through a value that has no keys, or past the end of a list.
    """
    result = copy.deepcopy(values)
    for key, value in settings.items():
        *parents, last = key.split(".")
        node: Any = result
        try:
            for parent in parents:
                node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
            node[int(last) if isinstance(node, list) else last] = value
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise DoubleheadError(f"there is no setting `{key}`") from error
    return result


def merge(values: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with `other` laid over it, key by key at every depth."""
    result = dict(values)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        DoubleheadError: the file is missing, is not YAML, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or 2001-99-99
        raise DoubleheadError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise DoubleheadError(f"{path}: must hold `key: value` lines")
    return values
