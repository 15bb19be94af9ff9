"""Steps that change pixels where they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from doublehead.data.steps import Blur, Colour, Erasing, Jpeg
from doublehead.data.transforms import Alone, InputSize, Sample, Step, happens, overlap


def colour(settings: Colour, size: InputSize) -> Step | None:
    """Build the change of colour."""
    change = 0.4 * settings.strength
    jitter = v2.ColorJitter(brightness=change, contrast=change, saturation=change, hue=0.05 * settings.strength)
    return Alone(jitter) if settings.strength else None


def blur(settings: Blur, size: InputSize) -> Step | None:
    """Build the Gaussian blur."""
    return _Blur(settings) if settings.p else None


def jpeg(settings: Jpeg, size: InputSize) -> Step | None:
    """Build the compression."""
    return Alone(v2.RandomApply([v2.JPEG(settings.quality)], settings.p)) if settings.p else None


def erasing(settings: Erasing, size: InputSize) -> Step | None:
    """Build the erasing of a rectangle."""
    return _Erasing(settings) if settings.p else None


class _Blur:
    """The kernel reaches two standard deviations; images that it would leave are not blurred."""

    def __init__(self, settings: Blur) -> None:
        self.p, self.radius = settings.p, math.ceil(2 * settings.sigma[1])
        self.blur = v2.GaussianBlur(2 * self.radius + 1, settings.sigma)

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        if happens(self.p) and min(image.shape[-2:]) > self.radius:
            image = self.blur(image)
        return image, boxes, labels


class _Erasing:
    """Torchvision's RandomErasing, and noise of bytes."""

    def __init__(self, settings: Erasing) -> None:
        self.settings, self.place = settings, v2.RandomErasing(scale=settings.area)

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        if not happens(self.settings.p):
            return image, boxes, labels
        place = self.place.make_params([image])
        if place["v"] is None:  # no such rectangle fits
            return image, boxes, labels
        top, left, height, width = (place[key] for key in "ijhw")
        noise = torch.randint(256, (image.shape[0], height, width), dtype=torch.uint8)
        image = v2.functional.erase(image, top, left, height, width, noise)
        covered = overlap(boxes, torch.tensor([left, top, left + width, top + height]))
        keep = covered <= 1 - self.settings.visible
        return image, boxes[keep], labels[keep]
