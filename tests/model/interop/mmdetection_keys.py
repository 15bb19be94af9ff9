"""The keys and shapes of MMDetection's models, as MMDetection 3.3.0 lists them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def mmdetections(model: str, depth: int) -> dict[str, Tensor]:
    """Keys and shapes of `faster_rcnn`, `cascade_rcnn` or `double_head` with ResNet-50 or ResNet-101.

    R-101's third stage has 17 blocks more than R-50's, all alike.
    """
    shapes = json.loads((GOLDEN / f"mmdetection_{model}_r50.keys.json").read_text())
    last = {key: shape for key, shape in shapes.items() if ".layer3.5." in key}
    for block in range(6, 23 if depth == 101 else 6):
        shapes |= {key.replace(".layer3.5.", f".layer3.{block}."): shape for key, shape in last.items()}
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
