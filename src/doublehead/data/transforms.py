"""Augmentation: steps on images and boxes together, random only through torch's generator.

A step is a call on an image, its boxes and labels, and the other images of the split. Each row of `steps.STEPS` names a
builder, which gives the step for its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from doublehead.common.tables import imported
from doublehead.data.steps import STEPS, AugmentConfig, Chance, Colour, ShortSides

Sample = tuple[Tensor, Tensor, Tensor]
"""An image uint8 (3, H, W), its boxes XYXY (N, 4) in pixels, and their labels (N,)."""

Step = Callable[[Tensor, Tensor, Tensor, Sequence[Sample]], Sample]
"""Takes a sample and, as a sequence, all samples of the split without augmentation; gives a sample.

A step that mixes images draws an index with torch's generator, `others[int(torch.randint(len(others), ()))]`: then the
result depends on seed, epoch and index alone. It may give images of any size; the model's input size comes last.
"""


class InputSize(NamedTuple):
    """The model's input: short side and the limit of the long side in pixels, and how to make images smaller."""

    short_side: int
    long_side: int
    antialias: bool = True


def training_transform(augment: AugmentConfig, short_side: int, long_side: int, antialias: bool = True) -> Step:
    """All steps of a config as one, ending in the model's input size.

    Boxes whose centre a crop cuts off are dropped with their labels; any other box survives, however small it becomes.

    Args:
        augment: the steps.
        short_side: the image's short side in pixels, unless the step `short_sides` names several to choose from.
        long_side: limit of the long side in pixels.
        antialias: whether resizing averages what it makes smaller.
    """
    size = InputSize(short_side, long_side, antialias)
    built = [(step.name, imported(STEPS[step.name].build)(step.settings, size)) for step in augment.steps]
    chosen = [step.settings.sides for step in augment.steps if isinstance(step.settings, ShortSides)]
    sides = sorted({side for sides in chosen for side in sides or (short_side,)} or {short_side})
    return _InOrder([step for _, step in built if step is not None], FinalSize(sides, size))


class _InOrder:
    """Steps one after the other; then the model's input size, and boxes without area dropped."""

    def __init__(self, steps: list[Step], resize: v2.Transform) -> None:
        self.steps = steps
        self.finish = v2.Compose([resize, v2.ClampBoundingBoxes(), DropEmptyBoxes()])

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        for step in self.steps:
            image, boxes, labels = _typed(*step(*_typed(image, boxes, labels), others))
        return self.finish(*_typed(image, boxes, labels))


def _typed(image: Tensor, boxes: Tensor, labels: Tensor) -> Sample:
    """The same with the types by which torchvision knows images and boxes: steps may give plain tensors."""
    size = (image.shape[-2], image.shape[-1])
    return tv_tensors.Image(image), tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size), labels


class Alone:
    """A transform of torchvision as a step that needs no other images."""

    def __init__(self, transform: v2.Transform) -> None:
        self.transform = transform

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:  # noqa: D102
        return self.transform(image, boxes, labels)


def iou_crop(settings: Chance, size: InputSize) -> Step | None:
    """Build a crop that keeps some object whole (SSD, section 2.2)."""
    return Alone(IoUCrop(settings.p)) if settings.p else None


def short_sides(settings: ShortSides, size: InputSize) -> Step | None:
    """Build the resizing to a short side drawn at random."""
    return Alone(ShortestSize(list(settings.sides or (size.short_side,)), size))


def flip(settings: Chance, size: InputSize) -> Step | None:
    """Build the exchange of left and right."""
    return Alone(v2.RandomHorizontalFlip(settings.p)) if settings.p else None


def vertical_flip(settings: Chance, size: InputSize) -> Step | None:
    """Build the exchange of top and bottom."""
    return Alone(v2.RandomVerticalFlip(settings.p)) if settings.p else None


def colour(settings: Colour, size: InputSize) -> Step | None:
    """Build the change of colour."""
    change = 0.4 * settings.strength
    jitter = v2.ColorJitter(brightness=change, contrast=change, saturation=change, hue=0.05 * settings.strength)
    return Alone(jitter) if settings.strength else None


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

    def __init__(self, short_sides: list[int], size: InputSize) -> None:
        super().__init__(short_sides, antialias=size.antialias)
        self.long_side = size.long_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:  # noqa: D102
        boxes = next(value for value in flat_inputs if isinstance(value, tv_tensors.BoundingBoxes))
        return {"size": self.size(boxes.canvas_size, self.short_side(boxes.canvas_size))}

    def short_side(self, size: tuple[int, int]) -> int:
        """Choose one of the sides."""
        return self.min_size[int(torch.randint(len(self.min_size), ()))]

    def size(self, size: tuple[int, int], short: int) -> tuple[int, int]:
        """Height and width that an image of this height and width gets."""
        scale = min(short / min(size), self.long_side / max(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class FinalSize(ShortestSize):
    """Resize to the nearest of the sizes allowed, without a draw; an image that has one of them is left as it is."""

    def short_side(self, size: tuple[int, int]) -> int:  # noqa: D102
        return min(self.min_size, key=lambda short: abs(max(self.size(size, short)) - max(size)))


class DropEmptyBoxes(v2.Transform):
    """Drop boxes without area, and their labels. (SanitizeBoundingBoxes would also drop all boxes under a pixel.)"""

    def forward(self, image: Any, boxes: Any, labels: Any) -> tuple[Any, Any, Any]:
        """Take and give image, boxes (N, 4) XYXY and labels (N,)."""
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return image, tv_tensors.wrap(boxes[keep], like=boxes), labels[keep]
