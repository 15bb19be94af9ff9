"""Parts of a model: a row per backbone and trunk with its specific settings; and branches, each a trunk and its tasks.

Settings and names are needed without torch, so a row names its module, which is only imported to build a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from doublehead.common.strict import Count, NotNegative, Positive, Strict
from doublehead.common.tables import row_of

RGB = tuple[float, float, float]
Block = Literal["up", "bottleneck", "non-local"]
AnchorSizes = tuple[float | tuple[float, ...], ...]
"""One or several sizes per level of the pyramid."""

CONV_HEAD_FORMS: dict[str, tuple[Block, ...]] = {
    "paper": ("up", "non-local", "bottleneck", "non-local", "bottleneck"),
    "mmdetection": ("up", "bottleneck", "bottleneck", "bottleneck", "bottleneck"),
}


class ResNetConfig(Strict):
    """Settings specific to ResNets."""

    width: Count = Field(default=64, description="Channels of the stem; those of the stages follow.")
    stride_in: Literal["3x3", "1x1"] = Field(
        default="3x3",
        description="Convolution of a bottleneck with the stride: 3x3 (torchvision) or 1x1 (the authors).",
    )
    norm_eps: NotNegative = Field(default=1e-5, description="Added to the variance in frozen and batch norm.")


class MobileNetConfig(Strict):
    """Settings specific to MobileNets."""

    norm_eps: NotNegative = Field(default=1e-5, description="Added to the variance in frozen and batch norm.")


class TimmConfig(Strict):
    """Settings specific to backbones from timm."""

    model: str = Field(default="tf_efficientnet_lite0.in1k", description="Its name in timm, with or without a tag.")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="Probability of leaving out a residual block.")


class FCHeadConfig(Strict):
    """The fc-head: flatten, then fully connected layers with ReLU."""

    layers: Count = 2
    width: Count = 1024


class ConvFCHeadConfig(FCHeadConfig):
    """3x3 convolutions followed by the layers of an fc-head."""

    layers: Count = 1
    convs: Count = Field(default=4, description="Number of 3x3 convolutions.")
    conv_width: Count = 256


class ConvHeadConfig(Strict):
    """The conv-head: blocks at 7x7, then global average pooling."""

    blocks: tuple[Block, ...] = Field(
        default=CONV_HEAD_FORMS["paper"], description="A list of blocks, or the form `paper` or `mmdetection`."
    )
    width: Count = 1024
    bottleneck_width: Count = 256
    non_local_width: Count = 512
    non_local_groups: Count = 4
    zero_init: bool = Field(
        default=False, description="Whether bottlenecks start as the identity, as non-local blocks always do."
    )

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


class NarrowHeadConfig(ConvHeadConfig):
    """A conv-head with few blocks and channels, for stages of a cascade that run on all proposals."""

    blocks: tuple[Block, ...] = ("up", "bottleneck")
    width: Count = 256
    bottleneck_width: Count = 64


@dataclass(frozen=True)
class BackboneRow:
    """A backbone that `model.backbone.name` can choose.

    Args:
        body: the `Body`, called with the BackboneConfig; or its import path, as `package.module:name`.
        section: key of its specific settings under `model.backbone`, which rows may share; None: no such settings.
        config: class of those settings.
        mean: default of `model.input.mean`.
        std: default of `model.input.std`.
        strides: strides of the body's feature maps. The pyramid adds a level of twice the last stride.
        anchor_sizes: default of `model.rpn.anchor_sizes`.
    """

    body: str | Callable[..., Any]
    section: str | None = None
    config: type[Strict] = Strict
    mean: RGB = (0.485, 0.456, 0.406)
    std: RGB = (0.229, 0.224, 0.225)
    strides: tuple[int, ...] = (4, 8, 16, 32)
    anchor_sizes: AnchorSizes = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class TrunkRow:
    """A trunk that a branch can choose, with settings under `model.<name>_head`.

    Args:
        trunk: the `Trunk`, called with channels, resolution, its settings and the name of a norm; or its import path,
            as `package.module:name`.
        config: class of its settings.
        roi_scale: default factor by which RoIs are enlarged about their centres.
    """

    trunk: str | Callable[..., Any]
    config: type[Strict] = Strict
    roi_scale: float = 1.0


BACKBONES: dict[str, BackboneRow] = {
    name: BackboneRow("doublehead.model.resnet:ResNetBody", "resnet", ResNetConfig)
    for name in ("resnet18", "resnet34", "resnet50", "resnet101")
} | {
    "mobilenet_v3_large": BackboneRow(
        "doublehead.model.mobilenet:MobileNetBody",
        "mobilenet",
        MobileNetConfig,
        strides=(32, 32),
        anchor_sizes=((32, 64, 128, 256, 512),) * 3,
    ),
    "timm": BackboneRow("doublehead.model.timm_body:TimmBody", "timm", TimmConfig),
}

TRUNKS: dict[str, TrunkRow] = {
    "fc": TrunkRow("doublehead.model.trunks:FCHead", FCHeadConfig),
    "conv": TrunkRow("doublehead.model.trunks:ConvHead", ConvHeadConfig, roi_scale=1.3),
    "convfc": TrunkRow("doublehead.model.trunks:ConvFCHead", ConvFCHeadConfig),
    "narrow": TrunkRow("doublehead.model.trunks:ConvHead", NarrowHeadConfig, roi_scale=1.3),
}
"""The paper's two trunks (section 4.1), that of torchvision's second Faster R-CNN, and a small conv-head."""


class BranchConfig(Strict):
    """A branch of a box head: a trunk, and the loss weight of each task (paper, section 4)."""

    trunk: str = Field(description="A row of TRUNKS: fc, conv.")
    classify: NotNegative = Field(description="Weight of the classification loss; 0: no such predictor.")
    regress: NotNegative = Field(description="Weight of the box regression loss; 0: no such predictor.")
    roi_scale: Positive | None = Field(
        default=None,
        description="Scale of each RoI about its centre; null: the trunk's own, 1.0 for fc and 1.3 for conv.",
    )
    lr: Positive = Field(default=1.0, description="Factor of the learning rate for this branch.")
    negatives: Count | None = Field(
        default=None,
        description="Maximum background proposals per image, of those sampled, that this branch classifies in "
        "training; null: all.",
    )
    hard_negatives: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="Of `negatives`, how many are the hardest by the first branch; the others are drawn at random and "
        "stand for those left out.",
    )
    temperature: Positive = Field(
        default=1.0, description="Divides the class logits at inference; `doublehead calibrate` fits it."
    )
    background_offset: float = Field(
        default=0.0,
        ge=-100,
        le=100,
        description="Added to the background's logit before (with sigmoid, taken from each class's); fitted with it.",
    )

    @field_validator("trunk")
    @classmethod
    def _known(cls, trunk: str) -> str:
        return row_of("trunk", trunk, TRUNKS)

    @model_validator(mode="after")
    def _learns_something(self) -> BranchConfig:
        if self.classify == 0 and self.regress == 0:
            raise ValueError("a branch must classify or regress: give one of its weights a value above 0")
        return self

    @model_validator(mode="after")
    def _own_negatives(self) -> BranchConfig:
        if self.negatives is not None and self.only_regresses:
            raise ValueError("negatives: this branch does not classify, so it sees only positives; set it to null")
        if self.hard_negatives > (self.negatives or 0):
            raise ValueError("hard_negatives must not exceed negatives")
        return self

    @property
    def scale(self) -> float:
        """RoI scale of the branch, or else of its trunk."""
        return self.roi_scale or TRUNKS[self.trunk].roi_scale

    @property
    def calibrated(self) -> bool:
        """Whether the scores of this branch are calibrated."""
        return (self.temperature, self.background_offset) != (1, 0)

    @property
    def only_regresses(self) -> bool:
        """Whether the branch only predicts boxes, and so ignores proposals without an object."""
        return self.classify == 0


def branch_names(branches: Sequence[BranchConfig]) -> tuple[str, ...]:
    """Name each branch after its trunk, with a number if several have the same trunk."""
    trunks = [b.trunk for b in branches]
    return tuple(t if trunks.count(t) == 1 else f"{t}{trunks[: i + 1].count(t)}" for i, t in enumerate(trunks))
