"""Detectors small enough for tests."""

from typing import Any

import torch

from doublehead.config import ModelConfig, merge
from doublehead.model.detector import Detector
from doublehead.model.presets import preset_values

SMALL: dict[str, Any] = {
    "input": {"short_side": 96, "long_side": 128},
    "backbone": {"norm": "group"},
    "fpn": {"channels": 16},
    "head_norm": "group",
    "fc_head": {"width": 32},
    "conv_head": {"width": 32, "bottleneck_width": 16, "non_local_width": 16},
    "convfc_head": {"width": 32, "conv_width": 16},
}


def small_config(variant: str, **changes: Any) -> ModelConfig:
    """A preset's tiny size made tinier."""
    return ModelConfig.model_validate(merge(merge(preset_values(f"{variant}-tiny"), SMALL), changes))


def small_model(variant: str = "double-head", classes: int = 4, **changes: Any) -> Detector:
    """A detector with seeded weights."""
    torch.manual_seed(0)
    return Detector(small_config(variant, **changes), classes)


def target(boxes: list[list[float]], labels: list[int]) -> dict[str, torch.Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4).float(), "labels": torch.tensor(labels, dtype=torch.int64)}
