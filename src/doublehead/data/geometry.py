"""Steps that move pixels, and boxes with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from doublehead.data.steps import Affine, Chance, IoUCrop, LargeScaleJitter, ShortSides
from doublehead.data.transforms import Alone, InputSize, Sample, Step, canvas, fitted, happens, inside, resized


def iou_crop(settings: IoUCrop, size: InputSize) -> Step | None:
    """Build a crop that keeps some object whole (SSD, section 2.2)."""
    return _IoUCrop(settings) if settings.p else None


def short_sides(settings: ShortSides, size: InputSize) -> Step:
    """Build the resizing to a short side drawn at random."""
    return Alone(_ShortestSize(list(settings.sides or (size.short_side,)), size))


def lsj(settings: LargeScaleJitter, size: InputSize) -> Step:
    """Build Large-Scale Jitter (Ghiasi et al. 2021, section 3): a random scale, then a crop or padding to a square."""
    return _Jitter(settings, settings.side(size.short_side, size.long_side), size)


def flip(settings: Chance, size: InputSize) -> Step | None:
    """Build the exchange of left and right."""
    return Alone(v2.RandomHorizontalFlip(settings.p)) if settings.p else None


def vertical_flip(settings: Chance, size: InputSize) -> Step | None:
    """Build the exchange of top and bottom."""
    return Alone(v2.RandomVerticalFlip(settings.p)) if settings.p else None


def rotate90(settings: Chance, size: InputSize) -> Step | None:
    """Build the rotation by 90, 180 or 270 degrees."""
    return _QuarterTurns(settings.p) if settings.p else None


def affine(settings: Affine, size: InputSize) -> Step | None:
    """Build the rotation and shear by a few degrees."""
    return _Affine(settings, list(size.fill)) if settings.p else None


class _IoUCrop:
    """Images without boxes, or of a few pixels, stay whole."""

    def __init__(self, settings: IoUCrop) -> None:
        self.settings, self.crop = settings, v2.RandomIoUCrop()

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        # torchvision tries hundreds of crops in vain where there is no box, and divides by zero below four pixels
        if not happens(self.settings.p) or not len(boxes) or min(image.shape[-2:]) < 4:
            return image, boxes, labels
        place = self.crop.make_params([image, boxes])
        if not place:
            return image, boxes, labels
        centred = place.pop("is_within_crop_area")
        size = (place["height"], place["width"])
        moved = boxes[centred] - torch.tensor([place["left"], place["top"]] * 2)
        return functional.crop(image, **place), *inside(moved, labels[centred], size, self.settings.visible)


class _ShortestSize(v2.RandomShortestSize):
    """RandomShortestSize that rounds (800, where torchvision may give 799) and leaves at least one pixel."""

    def __init__(self, short_sides: list[int], size: InputSize) -> None:
        super().__init__(short_sides, antialias=size.antialias)
        self.long_side = size.long_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        short = self.min_size[int(torch.randint(len(self.min_size), ()))]
        return {"size": fitted(canvas(flat_inputs), short, self.long_side)}


class _Jitter:
    """The image is cropped at a random place where it is larger than the square; padding lies right and below."""

    def __init__(self, settings: LargeScaleJitter, side: int, size: InputSize) -> None:
        self.visible, self.side, self.size = settings.visible, side, size
        self.random = v2.ScaleJitter((side, side), settings.scale)

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        image, boxes = resized(image, boxes, self.random.make_params([image])["size"], self.size.antialias)
        height, width = (min(self.side, length) for length in image.shape[-2:])
        top = int(torch.randint(image.shape[-2] - height + 1, ()))
        left = int(torch.randint(image.shape[-1] - width + 1, ()))
        image = functional.crop(image, top, left, height, width)
        image = functional.pad(image, [0, 0, self.side - width, self.side - height], fill=list(self.size.fill))
        return image, *inside(boxes - torch.tensor([left, top, left, top]), labels, (height, width), self.visible)


class _QuarterTurns:
    """Counterclockwise, pixel by pixel."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        if not happens(self.p):
            return image, boxes, labels
        for _ in range(1 + int(torch.randint(3, ()))):
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack([y1, image.shape[-1] - x2, y2, image.shape[-1] - x1], dim=1)
            image = torch.rot90(image, dims=(-2, -1))
        return image.contiguous(), boxes, labels


class _Affine:
    """Torchvision's RandomAffine with boxes that are measured before they are clipped."""

    def __init__(self, settings: Affine, fill: list[int]) -> None:
        self.settings, self.fill = settings, fill
        shear = (-settings.shear, settings.shear)
        self.random = v2.RandomAffine(settings.degrees, shear=(*shear, *shear))

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        if not happens(self.settings.p):
            return image, boxes, labels
        change = self.random.make_params([image])
        height, width = image.shape[-2:]
        turned = functional.affine(image, **change, interpolation=v2.InterpolationMode.BILINEAR, fill=self.fill)
        reach = 2.0 * (height + width)  # torchvision clips boxes to the canvas: here one that none can leave
        wide = tv_tensors.BoundingBoxes(
            boxes + reach, format="XYXY", canvas_size=(int(height + 2 * reach), int(width + 2 * reach))
        )
        moved = functional.affine(wide, **change, center=[width / 2 + reach, height / 2 + reach])
        return turned, *inside(moved.as_subclass(Tensor) - reach, labels, (height, width), self.settings.visible)
