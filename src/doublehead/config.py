"""All settings of a run, with descriptions and defaults. Unknown keys are errors.

A run is a `Config`: `model` (architecture), `data` (dataset, augmentation and loading) and `train` (optimisation).
Each checkpoint contains `model`; the run folder contains the whole `Config`.
"""

from __future__ import annotations

import copy
import os.path
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from doublehead.common.errors import DoubleheadError, sentence
from doublehead.common.strict import Count, Fraction, NotNegative, Positive, Sectioned, Share, Strict
from doublehead.common.tables import row_of
from doublehead.data.steps import AugmentConfig
from doublehead.model.interop.catalogue import PUBLISHED
from doublehead.model.parts import BACKBONES, RGB, TRUNKS, BackboneRow, BranchConfig, branch_names
from doublehead.model.stages import CascadeConfig, Stage, require_both_tasks, require_earlier_scores
from doublehead.training.recorders import RECORDERS

Fusion = Literal["complementary", "average", "maximum"]

LOADER_TIMEOUT = 300.0
"""Maximum seconds for loading one batch; after that, the disk or a loader process counts as hanging."""


class BackboneConfig(Sectioned):
    """The backbone: feature maps of strides 4, 8, 16 and 32. ResNet-only settings are under `resnet`."""

    name: str = Field(
        default="resnet50",
        description="A row of BACKBONES: resnet18, resnet34, resnet50, resnet101, mobilenet_v3_large, timm.",
    )
    norm: Literal["frozen", "batch", "group"] = Field(
        default="frozen", description="frozen: BatchNorm with fixed statistics; batch or group: from scratch."
    )
    weights: str | None = Field(
        default="imagenet",
        description="imagenet: downloaded once; a path to a .pth or .safetensors file; or null: none.",
    )
    trainable_stages: int = Field(default=3, ge=0, le=5, description="How many of the 5 stages learn, last first.")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return row_of("backbone", name, BACKBONES)

    @model_validator(mode="after")
    def _own_section(self) -> BackboneConfig:
        section = BACKBONES[self.name].section
        known = {row.section: row.config for row in BACKBONES.values() if row.section}
        self._check_sections(known, [section] if section else [])
        return self

    @property
    def own(self) -> Any:
        """Settings specific to this backbone."""
        section = BACKBONES[self.name].section
        return self.section(section) if section else Strict()

    @property
    def network(self) -> str:
        """Network whose weights fit: the row's name, or timm's model without the tag of its weights."""
        return getattr(self.own, "model", self.name).partition(".")[0]


class FPNConfig(Strict):
    """The feature pyramid on top of the backbone (torchvision's)."""

    channels: Count = 256
    norm: Literal["auto", "none", "batch", "group"] = Field(
        default="auto", description="auto: group where the backbone's norm is group, else none."
    )


class RPNConfig(Strict):
    """The region proposal network (torchvision's), with the recipe's numbers."""

    depth: Count = Field(default=1, description="Number of 3x3 convolutions.")
    anchor_sizes: tuple[Positive | Annotated[tuple[Positive, ...], Field(min_length=1)], ...] = Field(
        default=BackboneRow.anchor_sizes,
        description="One size for each of P2..P6, or a list of sizes for each level; the default is the backbone's.",
    )
    aspect_ratios: tuple[Positive, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    anchors: Literal["torchvision", "mmdetection", "authors"] = Field(
        default="torchvision", description="Program whose rounding and placement of anchors is used."
    )
    foreground_iou: Fraction = 0.7
    background_iou: Fraction = 0.3
    sampled: Count = Field(default=256, description="Anchors sampled per image for the loss.")
    positive_fraction: Share = 0.5
    nms_iou: Fraction = 0.7
    before_nms_training: Count = Field(default=2000, description="Proposals kept per level before NMS.")
    before_nms_inference: Count = Field(default=1000, description="Proposals kept per level before NMS.")
    proposals_training: Count = Field(default=2000, description="Proposals kept per image after NMS.")
    proposals_inference: Count = Field(default=1000, description="Proposals kept per image after NMS.")
    smallest_side: NotNegative = Field(default=1e-3, description="Minimum side of a proposal, in pixels.")
    score_threshold: Fraction = Field(default=0.0, description="Minimum score of a proposal.")

    @property
    def sizes(self) -> tuple[tuple[float, ...], ...]:
        """The anchor sizes of each level."""
        return tuple(level if isinstance(level, tuple) else (level,) for level in self.anchor_sizes)

    @property
    def anchors_per_position(self) -> int:
        """Number of anchors per position of a feature map."""
        return len(self.sizes[0]) * len(self.aspect_ratios)

    @model_validator(mode="after")
    def _as_many_on_each_level(self) -> RPNConfig:
        if len({len(level) for level in self.sizes}) > 1:
            raise ValueError("anchor_sizes: give each level the same number of sizes")
        return self

    @model_validator(mode="after")
    def _background_below(self) -> RPNConfig:
        if not self.background_iou <= self.foreground_iou:
            raise ValueError("background_iou must not exceed foreground_iou")
        return self


BoxFusion = Literal["largest", "average"]
NMS = Literal["hard", "linear", "gaussian"]


class RoIConfig(Strict):
    """Sampling of proposals, the proposals passed to box-only branches, and post-processing."""

    sampled: Count = Field(default=512, description="Proposals sampled per image in training.")
    positive_fraction: Share = 0.25
    foreground_iou: Fraction = 0.5
    training_proposals: Literal["positives", "all"] = Field(
        default="positives", description="Proposals that a regress-only branch sees in training."
    )
    regress_iou: Fraction | None = Field(
        default=None,
        description="Least IoU of the positives of a branch that only regresses, which then draws its own; null: it "
        "sees those of the others.",
    )
    box_loss: Literal["smooth_l1", "giou"] = Field(
        default="smooth_l1", description="smooth_l1: of box deltas; giou: 1 - GIoU of the boxes."
    )
    beta: NotNegative = Field(default=1.0, description="Where the smooth L1 loss of boxes turns linear; 0: L1.")
    inference_proposals: Literal["owners", "all"] = Field(
        default="owners",
        description="What a branch that gives only boxes sees at inference: owners of candidate detections, or all.",
    )
    classification: Literal["softmax", "sigmoid"] = Field(
        default="softmax", description="softmax: classes and background compete; sigmoid: each class independently."
    )
    focal_gamma: NotNegative = Field(
        default=0.0, le=100, description="Exponent of the focal loss on hard proposals; 0: off, 2: usual."
    )
    score_branch: str | None = Field(
        default=None, description="Branch that gives the class scores, such as fc; null: all of them, fused."
    )
    box_branch: str | None = Field(
        default=None,
        description="Branch that gives the boxes, such as conv; null: as box_fusion says.",
    )
    box_fusion: BoxFusion = Field(
        default="largest",
        description="Boxes of several regressing branches. largest: those of the branch with the largest regress "
        "weight; average: the mean of their deltas.",
    )
    fusion: Fusion = Field(
        default="complementary", description="How the scores of several classifying branches become one (paper, 4.3)."
    )
    score_floor: Fraction = Field(
        default=0.0,
        description="Of several branches whose scores are fused, the later ones see only proposals to which the first "
        "gives some class a score above it; the others are dropped. 0: they see all.",
    )
    class_agnostic: bool = Field(default=False, description="One box per proposal rather than one per class.")
    sampling_ratio: int = Field(
        default=2, ge=0, lt=2**31, description="RoIAlign's sampling points per bin and side; 0: adaptive."
    )
    aligned: bool = Field(default=False, description="Whether RoIAlign shifts coordinates by half a pixel.")
    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.5
    nms: NMS = Field(
        default="hard",
        description="hard: NMS drops the lower-scored of two; linear or gaussian: soft-NMS lowers its score.",
    )
    nms_sigma: Positive = Field(default=0.5, description="Of gaussian soft-NMS: score times exp(-IoU^2 / nms_sigma).")
    nms_across_classes: bool = Field(
        default=False, description="Whether NMS also drops detections that overlap better ones of another class."
    )
    detections: Count = Field(default=100, description="Maximum detections per image.")
    calibrated: bool = Field(default=True, description="Apply each branch's temperature and background offset.")
    decision_threshold: Fraction | None = Field(
        default=None, description="Score from which `predict` and `serve` show detections by default; null: 0.5."
    )
    smallest_side: NotNegative = Field(default=1e-2, description="Minimum side of a detection, in pixels.")

    @model_validator(mode="after")
    def _own_positives(self) -> RoIConfig:
        if self.regress_iou is not None and self.training_proposals == "all":
            raise ValueError("regress_iou needs training_proposals: positives")
        return self


class InputConfig(Strict):
    """Preprocessing of images for the network."""

    short_side: int = Field(default=800, ge=32, lt=2**31, description="Shorter side after resizing.")
    long_side: int = Field(default=1333, ge=32, lt=2**31, description="Maximum longer side.")
    antialias: bool = Field(default=True, description="Whether shrinking an image averages its pixels.")
    mean: RGB = Field(default=(0.485, 0.456, 0.406), description="Of RGB in 0..1; the default is the backbone's.")
    std: tuple[Positive, Positive, Positive] = Field(default=(0.229, 0.224, 0.225), description="Likewise.")


MOVED: dict[str, tuple[str, ...]] = {
    "width": ("backbone", "resnet", "width"),
    "stride_in": ("backbone", "resnet", "stride_in"),
    "norm_eps": ("backbone", "resnet", "norm_eps"),
    "fpn_channels": ("fpn", "channels"),
}
"""Keys under `model.backbone` in version 0.1, with their current places."""


def renewed(model: Any) -> Any:
    """Move the keys of earlier versions in the values of a ModelConfig to their current places.

    A key of an earlier version takes precedence over its new key, since presets only use new keys.
    """
    backbone = model.get("backbone") if isinstance(model, dict) else None
    if not isinstance(backbone, dict):
        return model
    result = model | {"backbone": {key: value for key, value in backbone.items() if key not in MOVED}}
    for key in MOVED.keys() & backbone.keys():
        value = backbone[key]
        for part in reversed(MOVED[key]):
            value = {part: value}
        result = merge(result, value)
    return result


class ModelConfig(Sectioned):
    """The model. `doublehead models` lists the presets. Settings of each trunk are under `<trunk>_head`."""

    preset: str = Field(default="custom", description="The preset this came from, for people to read.")
    branches: tuple[BranchConfig, ...] = Field(min_length=1)
    input: InputConfig = InputConfig()
    backbone: BackboneConfig = BackboneConfig()
    fpn: FPNConfig = FPNConfig()
    rpn: RPNConfig = RPNConfig()
    roi: RoIConfig = RoIConfig()
    cascade: CascadeConfig | None = Field(
        default=None, description="Box heads one after another, or the name of a convention; null: one box head."
    )
    head_norm: Literal["batch", "renorm", "group", "layer", "none"] = Field(
        default="batch",
        description="Norm of the trunks that have one; renorm: batch norm that normalises in training as in inference; "
        "layer: over all channels and positions.",
    )
    inclusive_pixels: bool = Field(
        default=False, description="Whether RoIs are pooled, clipped and resized as boxes that end at their last pixel."
    )

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, values: Any) -> Any:
        return renewed(values)

    @model_validator(mode="after")
    def _brought_by_rows(self) -> ModelConfig:
        """Check the sections of trunks, and default mean, std and anchor sizes to those of the backbone."""
        known = {f"{name}_head": row.config for name, row in TRUNKS.items()}
        self._check_sections(known, [f"{branch.trunk}_head" for stage in self.stages for branch in stage.branches])
        row = BACKBONES[self.backbone.name]
        own = {"mean": row.mean, "std": row.std}
        missing = {key: value for key, value in own.items() if key not in self.input.model_fields_set}
        object.__setattr__(self, "input", self.input.model_copy(update=missing))
        if "anchor_sizes" not in self.rpn.model_fields_set:
            object.__setattr__(self, "rpn", self.rpn.model_copy(update={"anchor_sizes": row.anchor_sizes}))
        if len(self.rpn.anchor_sizes) != len(row.strides) + 1:
            raise ValueError(
                f"rpn.anchor_sizes: the pyramid on {self.backbone.network} has {len(row.strides) + 1} levels, but "
                f"sizes are given for {len(self.rpn.anchor_sizes)}"
            )
        return self

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the feature maps that RoIs are pooled from."""
        return BACKBONES[self.backbone.name].strides

    @model_validator(mode="after")
    def _both_tasks(self) -> ModelConfig:
        require_both_tasks(self.branches, "branches")
        require_earlier_scores(self.branches, "branches")
        for field, name in (("score_branch", self.roi.score_branch), ("box_branch", self.roi.box_branch)):
            task = {"score_branch": "classify", "box_branch": "regress"}[field]
            able = [n for n, b in zip(self.branch_names, self.branches, strict=True) if getattr(b, task)]
            if name is not None and name not in able:
                raise ValueError(f"roi.{field}: no branch `{name}` can {task}; choose {' or '.join(able)}")
        return self

    @model_validator(mode="after")
    def _one_box_to_refine(self) -> ModelConfig:
        if len(self.stages) > 1 and not self.roi.class_agnostic:
            raise ValueError("cascade: a stage refines one box per proposal, so set model.roi.class_agnostic=true")
        if self.cascade and self.roi.regress_iou is not None:
            raise ValueError("roi.regress_iou: the stages of a cascade have their own, `cascade.ious`; set it to null")
        return self

    @property
    def branch_names(self) -> tuple[str, ...]:
        """Names of the final box head's branches, as given by `parts.branch_names`."""
        return branch_names(self.branches)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All box heads, first to last."""
        if self.cascade is None:
            roi = self.roi
            return (Stage(self.branches, roi.foreground_iou, beta=roi.beta, regress_iou=roi.regress_iou),)
        return self.cascade.stages(self.branches)

    def trunk(self, name: str) -> Any:
        """Settings of a trunk that one of the branches uses."""
        return self.section(f"{name}_head")


class InferenceOptions(Strict):
    """Inference options of a trained model: thresholds, sizes, and the heads in use. See `inference_options`."""

    score_threshold: Fraction = Field(description="Least score of a detection.")
    class_thresholds: tuple[tuple[Count, Fraction], ...] = Field(
        default=(), description="Labels 1..C with a minimum score of their own in place of score_threshold."
    )
    nms_iou: Fraction = Field(description="IoU above which the lesser of two detections of a class is dropped.")
    nms: NMS = Field(
        default="hard",
        description="hard: NMS drops the lower-scored of two; linear or gaussian: soft-NMS lowers its score.",
    )
    nms_sigma: Positive = Field(default=0.5, description="Of gaussian soft-NMS: score times exp(-IoU^2 / nms_sigma).")
    nms_across_classes: bool = Field(
        default=False, description="Whether NMS also drops detections that overlap better ones of another class."
    )
    detections: Count = Field(description="Maximum detections per image.")
    short_side: int = Field(ge=32, lt=2**31, description="Shorter side after resizing, in pixels.")
    long_side: int = Field(ge=32, lt=2**31, description="Maximum longer side, in pixels.")
    score_branch: str | None = Field(description="The branch whose scores count; null: all that classify, fused.")
    box_branch: str | None = Field(description="The branch that gives the boxes; null: as box_fusion says.")
    box_fusion: BoxFusion = Field(
        default="largest",
        description="largest: boxes of the branch with the largest regress weight; average: the mean of all.",
    )
    score_floor: Fraction = Field(description="Score of the first branch below which later branches skip a proposal.")
    fusion: Fusion = Field(description="How the scores of several branches become one.")
    inference_proposals: Literal["owners", "all"] = Field(description="What a branch that gives only boxes sees.")
    calibrated: bool = Field(description="Apply each branch's temperature and background offset.")
    decision_threshold: Fraction | None = Field(
        description="Score from which `predict` and `serve` show detections by default; null: 0.5."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="fp32", description="auto: bf16 where the device is faster in it, otherwise fp32."
    )
    classes: tuple[Count, ...] | None = Field(default=None, description="Labels 1..C to find; null: all.")
    tiles: int | None = Field(
        default=None,
        ge=32,
        lt=2**31,
        description="Side of the tiles that larger images are cut into, in pixels of the image; null: no tiles.",
    )
    overlap: float = Field(
        default=0.2, ge=0, le=0.9, description="Minimum share of a tile that the next one also covers."
    )
    tile_batch: Count = Field(default=4, description="Tiles that go through the model at once.")
    tile_merge: Literal["nms", "wbf"] = Field(
        default="nms", description="How detections of tiles are merged: NMS, or weighted box fusion."
    )
    flip: bool = Field(default=False, description="Also detect in the mirrored image, and fuse.")
    scales: tuple[Positive, ...] = Field(
        default=(1.0,),
        min_length=1,
        description="Multiples of short_side and long_side to detect at; several are fused.",
    )
    model_weights: tuple[Positive, ...] | None = Field(
        default=None, description="Weight of each model of an ensemble; null: equal."
    )
    wbf_iou: Fraction = Field(
        default=0.55, description="IoU above which weighted box fusion takes boxes for one object."
    )

    @model_validator(mode="after")
    def _sizes_in_bounds(self) -> InferenceOptions:
        sides = [scale * side for scale in self.scales for side in (self.short_side, self.long_side)]
        if not all(32 <= side < 2**31 for side in sides):
            raise ValueError(f"scales: {self.short_side} and {self.long_side} must stay at least 32 pixels")
        return self

    @property
    def plain(self) -> bool:
        """Whether each image takes a single forward pass: no tiles, flip or scales."""
        return self.tiles is None and not self.flip and self.scales == (1.0,)


USUAL_DECISION = 0.5
"""Minimum score of shown detections for models without a `decision_threshold`."""

IN_MODEL = {
    name: f"{part}.{name}"
    for name in InferenceOptions.model_fields
    for part, settings in (("roi", RoIConfig), ("input", InputConfig))
    if name in settings.model_fields
}
"""Options that default to settings of the model."""

AROUND_MODEL = frozenset({"tiles", "overlap", "tile_batch", "tile_merge", "flip", "model_weights", "wbf_iou"})
"""Options for the images a model sees and for merging its results: every model supports them, exported or not."""


def with_options(model: ModelConfig, settings: Mapping[str, Any]) -> ModelConfig:
    """Return a model config with other defaults for the inference options.

    Args:
        model: the config.
        settings: values by option name, such as {"score_threshold": 0.5}, or by key in the model, such as
            {"model.roi.score_threshold": 0.5}.

    Raises:
        DoubleheadError: an option is unknown or not stored in models, or a value is invalid.
    """
    given = option_names(settings)
    if others := [name for name in given if name not in IN_MODEL]:
        raise DoubleheadError(f"`{others[0]}` is not a setting of a model; give it when the model is loaded")
    try:
        return ModelConfig.model_validate(override(model.model_dump(), {IN_MODEL[n]: v for n, v in given.items()}))
    except ValidationError as error:
        raise DoubleheadError(f"inference options: {sentence(error)}") from error


def unfitted(model: ModelConfig) -> ModelConfig:
    """Return a model config without values fitted to trained weights: calibration and the decision threshold."""
    fitted = {"temperature": 1.0, "background_offset": 0.0}
    branches = tuple(branch.model_copy(update=fitted) for branch in model.branches)
    roi = model.roi.model_copy(update={"decision_threshold": None})
    return model.model_copy(update={"branches": branches, "roi": roi})


def option_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert keys such as `model.roi.nms_iou` to the names of inference options; names stay unchanged.

    Raises:
        DoubleheadError: an option is unknown.
    """
    names = {key: name for name, key in IN_MODEL.items()}
    result = {names.get(key.removeprefix("model."), key): value for key, value in settings.items()}
    if unknown := [key for key in result if key not in InferenceOptions.model_fields]:
        raise DoubleheadError(
            f"there is no inference option `{unknown[0]}`; choose {', '.join(InferenceOptions.model_fields)}"
        )
    return result


def inference_options(
    model: ModelConfig, settings: Mapping[str, Any] | None = None, names: Sequence[str] = ()
) -> InferenceOptions:
    """Return the inference options of a model, with changes.

    Args:
        model: the config with the defaults.
        settings: as in `with_options`; `classes` is a list of names, `class_thresholds` a mapping from names.
        names: class names of the model.

    Raises:
        DoubleheadError: an option or class is unknown, or a value is invalid.
    """
    given = option_names(settings or {})
    changed = with_options(model, {name: value for name, value in given.items() if name in IN_MODEL})
    own = {name: getattr(getattr(changed, key.split(".")[0]), name) for name, key in IN_MODEL.items()}
    others = {name: value for name, value in given.items() if name not in IN_MODEL}
    if others.get("classes") is not None:
        others["classes"] = _labels(others["classes"], names)
    if others.get("class_thresholds") is not None:
        others["class_thresholds"] = _by_label(others["class_thresholds"], names)
    try:
        return InferenceOptions.model_validate(own | others)
    except ValidationError as error:
        raise DoubleheadError(f"inference options: {sentence(error)}") from error


def _labels(classes: Any, names: Sequence[str]) -> tuple[int, ...]:
    """Convert class names to labels.

    Raises:
        DoubleheadError: a class is unknown to the model.
    """
    one = isinstance(classes, str) or not isinstance(classes, Iterable)
    wanted = [str(name) for name in ([classes] if one else classes)]  # YAML reads a class named 5 as a number
    if unknown := [name for name in wanted if name not in names]:
        raise DoubleheadError(f"classes: the model has no class `{unknown[0]}`; it knows {', '.join(names)}")
    return tuple(label for label, name in enumerate(names, 1) if name in wanted)


def _by_label(thresholds: Any, names: Sequence[str]) -> tuple[tuple[int, Any], ...]:
    """Convert thresholds by class name to pairs of label and threshold.

    Raises:
        DoubleheadError: `thresholds` is not a mapping, or a class is unknown to the model.
    """
    if not isinstance(thresholds, Mapping):
        raise DoubleheadError('class_thresholds: give a mapping, such as {"car": 0.4, "bus": 0.6}')
    return tuple((_labels(name, names)[0], value) for name, value in thresholds.items())


def absolute(path: str) -> str:
    """Make a path absolute, so that a run can be resumed from any working directory."""
    return str(Path(os.path.expanduser(path)).absolute())


class SplitConfig(Strict):
    """How a dataset without splits is split. A list stands for its `shares`."""

    shares: tuple[float, ...] = Field(
        default=(0.8, 0.1, 0.1), min_length=2, max_length=3, description="Shares of train, val and test, in proportion."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the split; another seed selects other images.")
    turn: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Part of the images by which shares move on: turns of 0, 1/3 and 2/3 are the folds of [2, 0, 1].",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"shares": value} if isinstance(value, list | tuple) else value

    @field_validator("shares")
    @classmethod
    def _of_something(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= share < 1e9 for share in shares) or shares[0] == 0:
            raise ValueError("shares must be numbers of at least 0, and more than 0 for train")
        return shares

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that have a share."""
        return tuple(name for name, share in zip(("train", "val", "test"), self.shares, strict=False) if share)

    @property
    def bounds(self) -> tuple[float, ...]:
        """Cumulative shares from 0 to 1, one more than there are names."""
        ends = tuple(accumulate(share / sum(self.shares) for share in self.shares if share))
        return (0.0, *ends[:-1], 1.0)

    def __str__(self) -> str:
        percent = "/".join(f"{100 * share / sum(self.shares):g}" for share in self.shares if share)
        drawn = {"seed": self.seed, "turn": self.turn}
        other = ", ".join(f"{name} {value:g}" for name, value in drawn.items() if value)
        return f"{percent} into {', '.join(self.names)}" + (f" ({other})" if other else "")


class DataConfig(Strict):
    """Dataset, augmentation and loading."""

    path: str = Field(default="", description="The dataset: a folder, or a YAML file that names its splits.")
    train_split: str = "train"
    val_split: str | None = Field(default="val", description="Split measured during training; null: none.")
    split: SplitConfig | None = Field(
        default=None, description="Shares of a dataset without splits, such as [0.7, 0.2, 0.1]; None: 80/10/10."
    )
    augment: AugmentConfig = Field(
        default=AugmentConfig(), description="Steps in order, such as [{flip: {p: 0.5}}, {colour: {strength: 0.3}}]."
    )
    repeat_threshold: Share | None = Field(
        default=None,
        description="Show images more often if they have a class that fewer than this share of images has; null: off.",
    )
    image_weights: bool = Field(
        default=False, description="Show images in proportion to their `weight` in the annotations."
    )
    workers: int | None = Field(
        default=None, ge=0, lt=2**31, description="Loader processes per rank; None: by the cores."
    )
    timeout: float = Field(
        default=LOADER_TIMEOUT,
        ge=0,
        le=1e6,
        description="Maximum wait for a batch from a loader process, in seconds; 0: no limit.",
    )
    check: Literal["decode", "header", "none"] = Field(
        default="decode", description="How every image is checked before training starts."
    )

    @field_validator("path")
    @classmethod
    def _from_anywhere(cls, path: str) -> str:
        return path and absolute(path)


class TrainConfig(Strict):
    """Optimisation, evaluation during training, and recording."""

    weights: str | None = Field(
        default=None, description="Checkpoint to start from; predictors of other classes are initialised at random."
    )
    grow_from: str | None = Field(
        default=None,
        description="A detector whose backbone, FPN, RPN and fitting heads this one takes: a checkpoint, a published "
        "name, or a file that `convert` reads.",
    )
    partial_weights: bool = Field(
        default=False,
        description="Accept `weights` or `grow_from` that leave layers of the backbone at their initial values.",
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = Field(default=0.02, description="Peak learning rate, for `batch_size` images a step.")
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: NotNegative = 1e-4
    layer_decay: Share = Field(
        default=1.0, description="Factor of the rate from each stage of the backbone to the one before it; 1: none."
    )
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[Fraction, ...] = Field(
        default=(2 / 3, 8 / 9), description="`steps`: where the rate falls tenfold, as fractions of the run."
    )
    warmup_steps: int = Field(default=500, ge=0, lt=2**31)
    warmup_start: Fraction = Field(default=1 / 3, description="First rate, as a fraction of the peak.")
    steps: Count | None = Field(default=90_000, description="Length of the run in optimiser steps,")
    epochs: Positive | None = Field(default=None, description="or in epochs. Exactly one of the two is set.")
    batch_size: Count = Field(default=16, description="Images per step, over all ranks and accumulation.")
    accumulate: Count = Field(default=1, description="Forward passes per step, to save memory.")
    clip_norm: Positive | None = Field(default=None, description="Maximum norm of the gradient; null: no limit.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where the device is faster in it, otherwise fp32."
    )
    ema: float | None = Field(default=None, gt=0, lt=1, description="Decay of the weights' moving average; null: none.")
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1")
    evaluate_every: Positive | None = Field(
        default=None, description="Epochs between measurements on the val split; null: a twentieth of the run."
    )
    class_weights: dict[str, Positive] | Literal["balanced"] | None = Field(
        default=None,
        description="Weights in the classification loss, such as {cat: 2.0}, others 1; balanced: by inverse frequency.",
    )
    validation_loss: bool = Field(default=True, description="Also compute the losses on the val split.")
    metric: str = Field(
        default="AP", description="Metric that selects the best weights: AP, AP50, AP75, loss, or a class's name."
    )
    patience: Count | None = Field(
        default=None,
        description="Stop after this number of validations in a row without improvement of `metric`; null: never.",
    )
    save_minutes: Positive = Field(default=10.0, description="Maximum minutes between two savings of `last`.")
    skip_not_finite: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="Maximum steps skipped for a loss or gradient that is not finite.",
    )
    timeout: float = Field(
        default=1800.0, gt=0, le=1e6, description="Maximum wait for another process of the run, in seconds."
    )
    sync_batch_norm: bool = Field(
        default=False, description="Share the backbone's batch statistics among the processes of a run; needs CUDA."
    )
    checkpoint_backbone: bool = Field(
        default=False, description="Compute the backbone's blocks twice instead of storing their activations."
    )
    log_every: Count = Field(default=20, description="Steps between rows of training.csv.")
    recorders: tuple[str, ...] = Field(
        default=("csv",), description="Recorders of the run: names of rows of RECORDERS."
    )

    @field_validator("weights")
    @classmethod
    def _from_anywhere(cls, path: str | None) -> str | None:
        return path and absolute(path)

    @field_validator("grow_from")
    @classmethod
    def _named_or_from_anywhere(cls, source: str | None) -> str | None:
        return source if source in PUBLISHED and not Path(source).is_file() else source and absolute(source)

    @field_validator("milestones")
    @classmethod
    def _rising(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError("give milestones in rising order, such as [0.67, 0.89]")
        return milestones

    @field_validator("recorders")
    @classmethod
    def _known(cls, recorders: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(row_of("recorder", name, RECORDERS) for name in dict.fromkeys(recorders))

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give the run's length as steps or as epochs, and set the other to null")
        return self

    @model_validator(mode="after")
    def _one_start(self) -> TrainConfig:
        if self.weights and self.grow_from:
            raise ValueError("weights starts from a whole model and grow_from takes parts of one: set only one of them")
        return self

    @model_validator(mode="after")
    def _loss_is_measured(self) -> TrainConfig:
        if self.metric == "loss" and not self.validation_loss:
            raise ValueError("metric loss needs validation_loss=true")
        return self


class Config(Strict):
    """All settings of a run."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()


def parse_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse the assignments `a.b=c` of --set; c is read as YAML.

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
    """Return a copy of nested `values` with settings such as {"model.branches.0.roi_scale": 1.2} applied.

    Raises:
        DoubleheadError: part of a key leads to a plain value, or past the end of a list.
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
    """Merge two nested mappings; values of `other` take precedence."""
    result = dict(values)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Raises:
        DoubleheadError: the file is missing, is not YAML, or does not contain a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or 2001-99-99
        raise DoubleheadError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise DoubleheadError(f"{path}: must hold `key: value` lines")
    return values
