"""torchvision's `fasterrcnn_resnet50_fpn` (the first version), our single-fc.

Its published COCO weights count 91 classes: the background and ids 1..90, ten of which COCO does not use.
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
    learns = any(key.endswith(COUNTER) for key in weights)
    return result, {"backbone": {"norm": "batch", "norm_eps": 1e-5}} if learns else {}


FASTER_RCNN = Format(
    "Faster R-CNN of torchvision",
    marker="roi_heads.box_head.fc6.",
    table=(
        ("backbone.", "backbone."),
        ("rpn.head.", "rpn.head."),
        ("roi_heads.box_head.fc6.", f"{BRANCH}0.trunk.layers.0."),
        ("roi_heads.box_head.fc7.", f"{BRANCH}0.trunk.layers.1."),
        ("roi_heads.box_predictor.cls_score.", f"{BRANCH}0.classifier."),
        ("roi_heads.box_predictor.bbox_pred.", f"{BRANCH}0.regressor."),
    ),
    conventions={
        "backbone": {"norm": "frozen", "stride_in": "3x3"},  # or batch, see above
        "rpn": {"anchors": "torchvision", "smallest_side": 1e-3},
        "roi": {"aligned": False, "sampling_ratio": 2, "smallest_side": 1e-2},
        "input": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "inclusive_pixels": False,
    },
    defaults={
        "preset": "torchvision-faster-rcnn",
        "branches": [{"trunk": "fc", "classify": 1.0, "regress": 1.0}],
        "backbone": {"norm_eps": 0.0},  # torchvision sets it with its published weights, which were trained so
        "input": {"antialias": False},
    },
    laid_out=_todays_spelling,
)

FORMATS = (FASTER_RCNN,)
