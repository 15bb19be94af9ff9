"""Steps that move pixels, and boxes with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from doublehead.data.steps import LargeScaleJitter
from doublehead.data.transforms import InputSize, Sample, Step, inside


def lsj(settings: LargeScaleJitter, size: InputSize) -> Step:
    """Build Large-Scale Jitter (Ghiasi et al. 2021, section 3): a random scale, then a crop or padding to a square."""
    side = settings.side(size.short_side, size.long_side)
    return _Jitter(_ScaleJitter((side, side), settings.scale, antialias=size.antialias), settings.visible, size.fill)


class _Jitter:
    """The image is cropped at a random place where it is larger than the square; padding lies right and below."""

    def __init__(self, scale: v2.ScaleJitter, visible: float, fill: tuple[int, int, int]) -> None:
        self.scale, self.visible, self.fill = scale, visible, list(fill)

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        image, boxes = self.scale(image, boxes)
        side = self.scale.target_size[0]
        height, width = (min(side, length) for length in image.shape[-2:])
        top = int(torch.randint(image.shape[-2] - height + 1, ()))
        left = int(torch.randint(image.shape[-1] - width + 1, ()))
        image = functional.crop(image, top, left, height, width)
        image = functional.pad(image, [0, 0, side - width, side - height], fill=self.fill)
        return image, *inside(boxes - torch.tensor([left, top, left, top]), labels, (height, width), self.visible)


class _ScaleJitter(v2.ScaleJitter):
    """ScaleJitter that leaves at least one pixel."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = super().make_params(flat_inputs)["size"]
        return {"size": (max(1, height), max(1, width))}
