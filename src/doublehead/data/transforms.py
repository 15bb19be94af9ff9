"""Augmentation: steps on images and boxes together, random only through torch's generator.

A step is a call on an image, its boxes and labels, and the other images of the split. Each row of `steps.STEPS` names a
builder, which gives the step for its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from doublehead.common.errors import DoubleheadError
from doublehead.common.tables import imported
from doublehead.data.steps import STEPS, AugmentConfig, ShortSides, Sized

Sample = tuple[Tensor, Tensor, Tensor]
"""An image uint8 (3, H, W), its boxes XYXY (N, 4) in pixels, and their labels (N,)."""

Step = Callable[[Tensor, Tensor, Tensor, Sequence[Sample]], Sample]
"""Takes a sample and, as a sequence, all samples of the split without augmentation; gives a sample.

A step that mixes images draws an index with torch's generator, `others[int(torch.randint(len(others), ()))]`: then the
result depends on seed, epoch and index alone. It may give images of any size; the model's input size comes last.
"""


_ROUNDING = 1.0  # pixels by which a step's boxes may pass the edge


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
) -> InOrder:
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
    return InOrder([(name, step) for name, step in built if step is not None], FinalSize(limits, antialias))


class InOrder:
    """Steps one after the other; then the model's input size, and boxes without area dropped.

    Args:
        steps: each with its name.
        resize: what gives the input size.
    """

    def __init__(self, steps: list[tuple[str, Step]], resize: v2.Transform) -> None:
        self.steps = steps
        self._finish = v2.Compose([resize, v2.ClampBoundingBoxes(), DropEmptyBoxes()])

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:  # noqa: D102
        sample = image, boxes, labels
        for name, step in self.steps:
            sample = after(name, step, sample, others)
        return self.finished(sample)

    def finished(self, sample: Sample) -> Sample:
        """What the last step left, at the model's input size."""
        return self._finish(*_typed(*sample))


def after(name: str, step: Step, sample: Sample, others: Sequence[Sample]) -> Sample:
    """A sample after a step.

    Raises:
        StepError: the step returned what is no sample.
    """
    return checked(name, step(*_typed(*sample), others))


class StepError(DoubleheadError):
    """A step failed on an image, which is named where it is known."""


def checked(name: str, result: Any) -> Sample:
    """What a step returned, as a sample.

    Args:
        name: of the step.
        result: an image, boxes and labels; boxes and labels may be of any numeric type that fits, arrays or lists.

    Raises:
        StepError: it is no sample, or boxes and labels do not fit it.
    """

    def fault(what: str) -> StepError:
        return StepError(f"step `{name}` returned {what}")

    if not isinstance(result, list | tuple) or len(result) != 3:
        raise fault(f"{type(result).__name__}, not (image, boxes, labels)")
    image = result[0]
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise fault(f"{_kind(image)} as image; return a uint8 tensor (3, height, width)")
    if not image.numel():
        raise fault("an image without pixels")
    boxes, labels = _numbers(result[1]), _numbers(result[2])
    if boxes is None or (boxes.numel() and (boxes.ndim != 2 or boxes.shape[1] != 4)):
        raise fault(f"{_kind(result[1])} as boxes; return (N, 4), x1, y1, x2, y2 in pixels")
    if labels is None or labels.ndim != 1 or (labels.numel() and labels.is_floating_point()):
        raise fault(f"{_kind(result[2])} as labels; return N whole numbers")
    boxes, labels = boxes.reshape(-1, 4).to(torch.float32), labels.to(torch.int64)
    if len(boxes) != len(labels):
        raise fault(f"{len(boxes)} boxes but {len(labels)} labels; return one label for each box")
    if bool((labels < 1).any()):
        raise fault(f"the label {int(labels.min())}; labels count from 1, as the step receives them")
    height, width = image.shape[-2:]
    limit = torch.tensor([width, height] * 2) + _ROUNDING
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all(1)  # NaN is neither inside nor ordered
    wrong = ~(ordered & (boxes >= -_ROUNDING).all(1) & (boxes <= limit).all(1))
    if bool(wrong.any()):
        box = ", ".join(f"{value:g}" for value in boxes[wrong][0].tolist())
        size = f"{width} x {height}"
        raise fault(f"the box ({box}) for an image of {size}; return x1 <= x2 and y1 <= y2 in pixels, inside the image")
    return image, boxes, labels


def _numbers(value: Any) -> Tensor | None:
    """A tensor, array or sequence of numbers as a plain tensor; None: it is something else."""
    try:
        found = torch.as_tensor(value).as_subclass(Tensor)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if found.dtype == torch.bool or found.is_complex() else found


def _kind(value: Any) -> str:
    """A value's type, and what it holds."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def _typed(image: Tensor, boxes: Tensor, labels: Tensor) -> Sample:
    """The same with the types by which torchvision knows images and boxes: steps may give plain tensors."""
    size = (image.shape[-2], image.shape[-1])
    return tv_tensors.Image(image), tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size), labels


def resized(image: Tensor, boxes: Tensor, size: tuple[int, int], antialias: bool) -> tuple[Tensor, Tensor]:
    """An image and its boxes at another size.

    Args:
        image: uint8 (3, H, W).
        boxes: XYXY (N, 4) in pixels.
        size: height and width in pixels; at least one pixel is left.
        antialias: as of `training_transform`.
    """
    height, width = (max(1, side) for side in size)
    factors = torch.tensor([width / image.shape[-1], height / image.shape[-2]] * 2)
    # torch's bilinear kernel for uint8 fails where a single pixel is to be left
    mode = v2.InterpolationMode.BILINEAR if height * width > 1 else v2.InterpolationMode.NEAREST
    image = v2.functional.resize(image, [height, width], mode, antialias=antialias)
    return image, boxes.as_subclass(Tensor) * factors


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


def overlap(boxes: Tensor, other: Tensor) -> Tensor:
    """The share of each box (N, 4) that another box (4,) covers."""
    low, high = torch.maximum(boxes[:, :2], other[:2]), torch.minimum(boxes[:, 2:], other[2:])
    return (high - low).clamp(min=0).prod(1) / _area(boxes).clamp(min=1e-9)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


class Alone:
    """A transform of torchvision as a step that needs no other images."""

    def __init__(self, transform: v2.Transform) -> None:
        self.transform = transform

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:  # noqa: D102
        return self.transform(image, boxes, labels)


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
        size = canvas(flat_inputs)
        sizes = (fitted(size, *limit) for limit in self.limits)
        return {"size": min(sizes, key=lambda each: abs(max(each) - max(size)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: D102
        return self._call_kernel(v2.functional.resize, inpt, params["size"], antialias=self.antialias)


def canvas(flat_inputs: list[Any]) -> tuple[int, int]:
    """Height and width of what a transform of torchvision is given."""
    boxes = next(value for value in flat_inputs if isinstance(value, tv_tensors.BoundingBoxes))
    return boxes.canvas_size


def fitted(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """Height and width at a short side, or else at the limit of the long side."""
    scale = min(short / min(size), long / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class DropEmptyBoxes(v2.Transform):
    """Drop boxes without area, and their labels. (SanitizeBoundingBoxes would also drop all boxes under a pixel.)"""

    def forward(self, image: Any, boxes: Any, labels: Any) -> tuple[Any, Any, Any]:
        """Take and give image, boxes (N, 4) XYXY and labels (N,)."""
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return image, tv_tensors.wrap(boxes[keep], like=boxes), labels[keep]
