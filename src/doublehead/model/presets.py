"""Names such as `double-head-ext-r50` to a ModelConfig: a row of the variants' table, and a size."""

from __future__ import annotations

import difflib
from typing import Any

from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig
from doublehead.model.variants import VARIANTS

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "input": {"short_side": 240, "long_side": 400},
        "backbone": {
            "name": "resnet18",
            "norm": "batch",
            "weights": None,
            "trainable_stages": 5,
            "fpn_channels": 128,
        },
        "rpn": {
            "anchor_sizes": [16, 32, 64, 128, 256],
            "before_nms_training": 500,
            "before_nms_inference": 300,
            "proposals_training": 500,
            "proposals_inference": 300,
        },
        "roi": {"sampled": 64, "positive_fraction": 0.5},
        "fc_head": {"width": 512},
        "conv_head": {"width": 256, "bottleneck_width": 64, "non_local_width": 128},
    },
    "r18": {"backbone": {"name": "resnet18"}},
    "r34": {"backbone": {"name": "resnet34"}},
    "r50": {"backbone": {"name": "resnet50"}},
    "r101": {"backbone": {"name": "resnet101"}},
}
"""Sizes: `tiny` trains from scratch on two CPU cores; the others are the paper's, with ImageNet weights."""

PRESETS: tuple[str, ...] = tuple(f"{variant}-{size}" for size in SIZES for variant in VARIANTS)


def preset_values(name: str) -> dict[str, Any]:
    """The settings of a preset, as nested keys.

    Raises:
        DoubleheadError: there is no such preset; the sentence offers the nearest names.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 3) or ["double-head-r50", "double-head-tiny"]
        raise DoubleheadError(
            f"unknown model `{name}`: did you mean {' or '.join(near)}? `doublehead models` lists them all"
        )
    variant, _, size = name.rpartition("-")
    return {"preset": name, "branches": [b.model_dump() for b in VARIANTS[variant]], **SIZES[size]}


def preset(name: str) -> ModelConfig:
    """The ModelConfig of a preset, such as `double-head-r50`; see `preset_values`."""
    return ModelConfig.model_validate(preset_values(name))
