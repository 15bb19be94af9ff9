"""Augmentation: torchvision.transforms.v2 on images and boxes together, random only through torch's generator."""

from __future__ import annotations

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from doublehead.config import AugmentConfig


def training_transform(augment: AugmentConfig, short_side: int, long_side: int) -> v2.Transform:
    """Augmentation for training, ending in the model's input size.

    Takes and gives (image uint8 (3, H, W), boxes XYXY (N, 4), labels (N,)). Boxes whose centre a crop cuts off are
    dropped with their labels; any other box survives, however small it becomes.

    Args:
        augment: what to do and how often.
        short_side: the image's short side in pixels, unless `augment.short_sides` names several to choose from.
        long_side: limit of the long side in pixels.
    """
    steps: list[v2.Transform] = []
    # what lessens the pixels comes first
    if augment.iou_crop:
        steps.append(IoUCrop(augment.iou_crop))
    steps.append(ShortestSize(list(augment.short_sides or (short_side,)), long_side))
    if augment.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(augment.horizontal_flip))
    if augment.vertical_flip:
        steps.append(v2.RandomVerticalFlip(augment.vertical_flip))
    if augment.colour:
        change = 0.4 * augment.colour
        steps.append(v2.ColorJitter(brightness=change, contrast=change, saturation=change, hue=0.05 * augment.colour))
    return v2.Compose([*steps, v2.ClampBoundingBoxes(), DropEmptyBoxes()])


class IoUCrop(v2.RandomIoUCrop):
    """RandomIoUCrop with a probability; images without boxes, or of a few pixels, stay whole."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:  # noqa: D102
        boxes = next(value for value in flat_inputs if isinstance(value, tv_tensors.BoundingBoxes))
        # torchvision tries hundreds of crops in vain where there is no box, and divides by zero below four pixels
        if float(torch.rand(())) >= self.probability or not len(boxes) or min(boxes.canvas_size) < 4:
            return {}
        return super().make_params(flat_inputs)


class ShortestSize(v2.RandomShortestSize):
    """RandomShortestSize that rounds (800, where torchvision may give 799) and leaves at least one pixel."""

    def __init__(self, short_sides: list[int], long_side: int) -> None:
        super().__init__(short_sides)
        self.long_side = long_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:  # noqa: D102
        boxes = next(value for value in flat_inputs if isinstance(value, tv_tensors.BoundingBoxes))
        height, width = boxes.canvas_size
        short = self.min_size[int(torch.randint(len(self.min_size), ()))]
        scale = min(short / min(height, width), self.long_side / max(height, width))
        return {"size": (max(1, round(height * scale)), max(1, round(width * scale)))}


class DropEmptyBoxes(v2.Transform):
    """Drop boxes without area, and their labels. (SanitizeBoundingBoxes would also drop all boxes under a pixel.)"""

    def forward(self, image: Any, boxes: Any, labels: Any) -> tuple[Any, Any, Any]:
        """Take and give image, boxes (N, 4) XYXY and labels (N,)."""
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return image, tv_tensors.wrap(boxes[keep], like=boxes), labels[keep]
