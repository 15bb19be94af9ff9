"""Settings that make a model and a run small enough for tests, and how to say them on the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

SMALL: dict[str, Any] = {
    "model.input.short_side": 64,
    "model.input.long_side": 96,
    "model.fpn.channels": 16,
    "model.backbone.resnet.width": 8,
    "model.backbone.norm": "group",
    "model.head_norm": "group",
    "model.rpn.anchor_sizes": [12, 24, 48, 96, 192],
    "model.rpn.before_nms_training": 100,
    "model.rpn.before_nms_inference": 100,
    "model.rpn.proposals_training": 50,
    "model.rpn.proposals_inference": 50,
    "model.roi.sampled": 16,
    "model.fc_head.width": 32,
    "model.conv_head.width": 32,
    "model.conv_head.bottleneck_width": 16,
    "model.conv_head.non_local_width": 16,
    "data.workers": 0,
    "data.augment.colour": 0.0,
    "train.batch_size": 2,
    "train.precision": "fp32",
    "train.device": "cpu",
    "train.warmup_steps": 2,
    "train.ema": None,
    "train.log_every": 1,
}


def flags(settings: Mapping[str, Any]) -> list[str]:
    """The settings as --set flags."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def config_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def without_boxes(dataset: Path, split: str, keep: int = 0) -> None:
    """Take the boxes from all images of a split but the first `keep`."""
    file = dataset / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    kept = {image["id"] for image in content["images"][:keep]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    file.write_text(json.dumps(content))
