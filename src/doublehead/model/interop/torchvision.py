"""torchvision's Faster R-CNN: ResNet-50 and MobileNetV3 as our single-fc, ResNet-50 v2 as our single-convfc.

Their published COCO weights count 91 classes: the background and ids 1..90, ten of which COCO does not use.
"""

from __future__ import annotations

from typing import Any

from doublehead.model.interop.format import BRANCH, Format, Weights

OLD_SPELLINGS = (
    *((f"backbone.fpn.{kind}_blocks.{n}", "0.") for kind in ("inner", "layer") for n in range(4)),
    ("rpn.head.conv", "0.0."),
)
"""Layers, and the numbers that stand after them since torchvision 0.13; the published weights are older."""


COUNTER = "num_batches_tracked"


def _todays_spelling(weights: Weights) -> tuple[Weights, dict[str, Any]]:
    """Keys of today; and which norm the backbone has: without pretrained weights torchvision does not freeze it."""
    old = {f"{layer}.{part}": f"{layer}.{new}{part}" for layer, new in OLD_SPELLINGS for part in ("weight", "bias")}
    result = {old.get(key, key): value for key, value in weights.items()}
    learns = any(key.startswith("backbone.body.") and key.endswith(COUNTER) for key in weights)
    eps = {} if _is_mobilenet(weights) else {"resnet": {"norm_eps": 1e-5}}
    return result, {"backbone": {"norm": "batch", **eps}} if learns else {}


MOBILENET = "backbone.body.0.0."


def _is_mobilenet(weights: Weights) -> bool:
    return any(key.startswith(MOBILENET) for key in weights)


PREDICTORS = (
    ("roi_heads.box_predictor.cls_score.", f"{BRANCH}0.classifier."),
    ("roi_heads.box_predictor.bbox_pred.", f"{BRANCH}0.regressor."),
)
CONVENTIONS: dict[str, Any] = {
    "backbone": {"norm": "frozen", "resnet": {"stride_in": "3x3"}},  # or batch, see above
    "rpn": {"anchors": "torchvision", "smallest_side": 1e-3},
    "roi": {"aligned": False, "sampling_ratio": 2, "smallest_side": 1e-2},
    "input": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "inclusive_pixels": False,
}

FIRST_TABLE = (
    ("backbone.", "backbone."),
    ("rpn.head.", "rpn.head."),
    ("roi_heads.box_head.fc6.", f"{BRANCH}0.trunk.layers.0."),
    ("roi_heads.box_head.fc7.", f"{BRANCH}0.trunk.layers.1."),
    *PREDICTORS,
)
FASTER_RCNN = Format(
    "Faster R-CNN of torchvision",
    marker="roi_heads.box_head.fc6.",
    table=FIRST_TABLE,
    conventions=CONVENTIONS,
    defaults={
        "preset": "torchvision-faster-rcnn",
        "branches": [{"trunk": "fc", "classify": 1.0, "regress": 1.0}],
        "backbone": {"resnet": {"norm_eps": 0.0}},  # the published weights were trained with it
        "input": {"antialias": False},
    },
    laid_out=_todays_spelling,
    masks=("roi_heads.mask_",),
)

FASTER_RCNN_MOBILENET = Format(
    "Faster R-CNN of torchvision with MobileNetV3",
    marker=MOBILENET,
    table=FIRST_TABLE,
    conventions={
        **CONVENTIONS,
        "backbone": {"name": "mobilenet_v3_large", "norm": "frozen", "mobilenet": {"norm_eps": 1e-5}},
    },
    defaults={
        "preset": "torchvision-faster-rcnn-mobilenet",
        "branches": [{"trunk": "fc", "classify": 1.0, "regress": 1.0}],
        "rpn": {"score_threshold": 0.05},
        "input": {"antialias": False},
    },
    laid_out=_todays_spelling,
    masks=("roi_heads.mask_",),
)

CONVS = 4
"""Convolutions of the second version's box head; the fully connected layer follows after a Flatten."""

FASTER_RCNN_V2 = Format(
    "Faster R-CNN v2 of torchvision",
    marker="roi_heads.box_head.0.0.",
    table=(
        ("backbone.", "backbone."),
        ("rpn.head.", "rpn.head."),
        *((f"roi_heads.box_head.{n}.", f"{BRANCH}0.trunk.convs.{n}.") for n in range(CONVS)),
        (f"roi_heads.box_head.{CONVS + 1}.", f"{BRANCH}0.trunk.layers.0."),
        *PREDICTORS,
    ),
    conventions=CONVENTIONS,
    defaults={
        "preset": "torchvision-faster-rcnn-v2",
        "branches": [{"trunk": "convfc", "classify": 1.0, "regress": 1.0}],
        "backbone": {"norm": "batch"},
        "fpn": {"norm": "batch"},
        "rpn": {"depth": 2},
        "input": {"antialias": False},
    },
    laid_out=_todays_spelling,
    masks=("roi_heads.mask_",),
)

FORMATS = (FASTER_RCNN, FASTER_RCNN_V2, FASTER_RCNN_MOBILENET)
