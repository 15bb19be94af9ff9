"""A detector without error: it finds exactly what is painted into the pixels, and only what it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from doublehead.config import InferenceOptions, inference_options
from doublehead.inference.fusion import Found
from doublehead.model.presets import preset

Box = tuple[int, int, int, int]


def asked(**settings: Any) -> InferenceOptions:
    return inference_options(preset("double-head-tiny"), settings)


def painted(height: int, width: int, boxes: Sequence[Box]) -> Tensor:
    """An image in which object k = 1, 2, ... has the colour (k, 0, 0)."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes, 1):
        image[0, y1:y2, x1:x2] = number
    return image


@dataclass
class Seeing:
    """Finds each object of a painted image, all of label 1, scored by the share of its area that is in view.

    Args:
        areas: of the objects.
        largest: images with a longer side show nothing.
    """

    areas: Sequence[int]
    largest: int = 2**31
    batches: list[list[tuple[int, int]]] = field(default_factory=list)

    def detect(self, images: list[Tensor], options: InferenceOptions) -> list[Found]:
        self.batches.append([(image.shape[-2], image.shape[-1]) for image in images])
        return [self._seen(image) for image in images]

    def _seen(self, image: Tensor) -> Found:
        boxes, scores = list[list[float]](), list[float]()
        if max(image.shape[-2:]) <= self.largest:
            for number in image[0].unique().tolist():
                if number:
                    y, x = torch.where(image[0] == number)
                    boxes.append([int(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)])
                    scores.append(0.9 * len(x) / self.areas[number - 1])
        order = torch.tensor(scores).argsort(descending=True) if scores else torch.zeros(0, dtype=torch.int64)
        found = {"boxes": torch.tensor(boxes).reshape(-1, 4).float(), "scores": torch.tensor(scores)}
        found["labels"] = torch.ones(len(scores), dtype=torch.int64)
        return {name: value[order] for name, value in found.items()}


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
