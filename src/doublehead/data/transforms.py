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
from doublehead.data.steps import STEPS, AugmentConfig, Chance, Colour, ShortSides, Sized

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
    fill: tuple[int, int, int] = (124, 116, 104)  # RGB of pixels without an image; the model sees zeros there


def training_transform(
    augment: AugmentConfig,
    short_side: int,
    long_side: int,
    antialias: bool = True,
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
) -> Step:
    """All steps of a config as one, ending in the model's input size.

    Boxes are dropped with their labels where a step cuts off their centre (`iou_crop`) or leaves less of them than its
    setting `visible`. Any other box survives, however small it becomes.

    Args:
        augment: the steps.
        short_side: the image's short side in pixels, unless the step `short_sides` names several to choose from.
        long_side: limit of the long side in pixels.
        antialias: whether resizing averages what it makes smaller.
        mean: RGB in 0..1 that the model subtracts; the colour of padding.
    """
    red, green, blue = (round(255 * value) for value in mean)
    size = InputSize(short_side, long_side, antialias, (red, green, blue))
    built = [(step.name, imported(STEPS[step.name].build)(step.settings, size)) for step in augment.steps]
    sized = [step.settings for step in augment.steps if isinstance(step.settings, Sized)] or [ShortSides()]
    limits = [limit for settings in sized for limit in settings.limits(short_side, long_side)]
    return _InOrder([step for _, step in built if step is not None], FinalSize(limits, antialias))


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


def happens(p: float) -> bool:
    """Draw whether something of probability `p` is done."""
    return float(torch.rand(())) < p


def uniform(low: float, high: float) -> float:
    """Draw a number between two."""
    return float(torch.empty(()).uniform_(low, high))


def inside(boxes: Tensor, labels: Tensor, size: tuple[int, int], visible: float) -> tuple[Tensor, Tensor]:
    """Clip boxes that reach past the image, and drop those of which too little remains.

    Args:
        boxes: XYXY (N, 4) in pixels.
        labels: (N,).
        size: height and width of the image.
        visible: smallest share of a box's area that must remain.

    Returns:
        Boxes (M, 4) with area and their labels (M,).
    """
    clipped = torch.stack([boxes[:, i].clamp(0, size[1 - i % 2]) for i in range(4)], dim=1)
    left = _area(clipped)
    keep = (left > 0) & (left >= visible * _area(boxes) * (1 - 1e-5))  # rounding must not drop a whole box
    return clipped[keep], labels[keep]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


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
        if not happens(self.probability) or not len(boxes) or min(boxes.canvas_size) < 4:
            return {}
        return super().make_params(flat_inputs)


class ShortestSize(v2.RandomShortestSize):
    """RandomShortestSize that rounds (800, where torchvision may give 799) and leaves at least one pixel."""

    def __init__(self, short_sides: list[int], size: InputSize) -> None:
        super().__init__(short_sides, antialias=size.antialias)
        self.long_side = size.long_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:  # noqa: D102
        short = self.min_size[int(torch.randint(len(self.min_size), ()))]
        return {"size": _fitted(_canvas(flat_inputs), short, self.long_side)}


class FinalSize(v2.Transform):
    """Resize to the nearest of the sizes allowed, without a draw; an image that has one of them is left as it is.

    Args:
        limits: short side and limit of the long side of each, in pixels.
        antialias: as of `training_transform`.
    """

    def __init__(self, limits: list[tuple[int, int]], antialias: bool) -> None:
        super().__init__()
        self.limits, self.antialias = limits, antialias

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:  # noqa: D102
        size = _canvas(flat_inputs)
        sizes = (_fitted(size, *limit) for limit in self.limits)
        return {"size": min(sizes, key=lambda each: abs(max(each) - max(size)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: D102
        return self._call_kernel(v2.functional.resize, inpt, params["size"], antialias=self.antialias)


def _canvas(flat_inputs: list[Any]) -> tuple[int, int]:
    """Height and width of what a transform of torchvision is given."""
    boxes = next(value for value in flat_inputs if isinstance(value, tv_tensors.BoundingBoxes))
    return boxes.canvas_size


def _fitted(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """Height and width at a short side, or else at the limit of the long side."""
    scale = min(short / min(size), long / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class DropEmptyBoxes(v2.Transform):
    """Drop boxes without area, and their labels. (SanitizeBoundingBoxes would also drop all boxes under a pixel.)"""

    def forward(self, image: Any, boxes: Any, labels: Any) -> tuple[Any, Any, Any]:
        """Take and give image, boxes (N, 4) XYXY and labels (N,)."""
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return image, tv_tensors.wrap(boxes[keep], like=boxes), labels[keep]
