"""Steps that make one image of several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from doublehead.data.steps import CopyPaste, Mixup, Mosaic
from doublehead.data.transforms import InputSize, Sample, Step, happens, inside, overlap, resized, uniform

_TRIES = 10  # places looked at for an object to paste


def mosaic(settings: Mosaic, size: InputSize) -> Step | None:
    """Build the mosaic of four images (YOLOv4, section 3.3)."""
    return _Mosaic(settings, size) if settings.p else None


def mixup(settings: Mixup, size: InputSize) -> Step | None:
    """Build the blending with another image (Zhang et al. 2019, section 3.1)."""
    return _Mixup(settings, size) if settings.p else None


def copy_paste(settings: CopyPaste, size: InputSize) -> Step | None:
    """Build the pasting of objects (Ghiasi et al. 2021)."""
    return _CopyPaste(settings, size) if settings.p else None


class _Mosaic:
    """Four images with one corner each at a random point of a canvas as large as the first; gaps are filled."""

    def __init__(self, settings: Mosaic, size: InputSize) -> None:
        self.settings, self.size = settings, size

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        if not happens(self.settings.p):
            return image, boxes, labels
        height, width = image.shape[-2:]
        canvas = torch.tensor(self.size.fill, dtype=torch.uint8)[:, None, None].repeat(1, height, width)
        middle, centre = round(uniform(0.25, 0.75) * height), round(uniform(0.25, 0.75) * width)
        samples = [(image, boxes, labels), *(_another(others) for _ in range(3))]
        found: list[tuple[Tensor, Tensor]] = []
        for corner, sample in zip(torch.randperm(4).tolist(), samples, strict=True):
            scale = uniform(*self.settings.scale) * _fit(sample[0], height, width)
            tile, moved, names = _scaled(sample, scale, self.size.antialias)
            top = middle - tile.shape[-2] if corner < 2 else middle
            left = centre - tile.shape[-1] if corner % 2 == 0 else centre
            _paste(canvas, tile, top, left)
            moved = moved + torch.tensor([left, top] * 2)
            found.append(inside(moved, names, (height, width), self.settings.visible))
        return canvas, torch.cat([each for each, _ in found]), torch.cat([each for _, each in found])


class _Mixup:
    """The other image is resized to fit, and lies at a random place."""

    def __init__(self, settings: Mixup, size: InputSize) -> None:
        self.settings, self.size = settings, size

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        if not happens(self.settings.p):
            return image, boxes, labels
        height, width = image.shape[-2:]
        other = _another(others)
        tile, moved, names = _scaled(other, _fit(other[0], height, width), self.size.antialias)
        tile = tile[:, :height, :width]
        top, left = (int(torch.randint(a - b + 1, ())) for a, b in zip((height, width), tile.shape[-2:], strict=True))
        alpha = torch.tensor(self.settings.alpha)
        weight = float(torch.distributions.Beta(alpha, alpha).sample())
        image = image.clone()
        _paste(image, tile, top, left, torch.tensor(1 - weight))
        moved, names = inside(moved + torch.tensor([left, top] * 2), names, (height, width), 0)
        return image, torch.cat([boxes, moved]), torch.cat([labels, names])


class _CopyPaste:
    """Objects keep their share of the image, times a random factor, and cover no box by more than a limit."""

    def __init__(self, settings: CopyPaste, size: InputSize) -> None:
        self.settings, self.size = settings, size

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Sample:
        if not happens(self.settings.p):
            return image, boxes, labels
        source, objects, names = _another(others)
        chosen = torch.randperm(len(objects))[: 1 + int(torch.randint(self.settings.objects, ()))]
        share = math.sqrt(image[0].numel() / source[0].numel())
        image, boxes, covered = image.clone(), boxes.as_subclass(Tensor), torch.zeros(len(boxes))
        for index in chosen.tolist():
            piece, box = _cut(source, objects[index], share * uniform(*self.settings.scale), self.size.antialias)
            place = self._place(image, boxes, covered, piece, box)
            if place is None:
                continue
            top, left, covered = place
            _paste(image, piece, top, left, _feathered(piece, self.settings.feather))
            boxes = torch.cat([boxes, (box + torch.tensor([left, top] * 2))[None]])
            labels = torch.cat([labels, names[index : index + 1]])
            covered = torch.cat([covered, torch.zeros(1)])
        return image, boxes, labels

    def _place(
        self, image: Tensor, boxes: Tensor, covered: Tensor, piece: Tensor, box: Tensor
    ) -> tuple[int, int, Tensor] | None:
        """Top, left, and what is covered of each box then; None: there is no room."""
        down, right = image.shape[-2] - piece.shape[-2], image.shape[-1] - piece.shape[-1]
        if down < 0 or right < 0:
            return None
        for _ in range(_TRIES):
            top, left = int(torch.randint(down + 1, ())), int(torch.randint(right + 1, ()))
            after = covered + overlap(boxes, box + torch.tensor([left, top] * 2))
            if bool((after <= self.settings.covered).all()):
                return top, left, after
        return None


def _another(others: Sequence[Sample]) -> Sample:
    return others[int(torch.randint(len(others), ()))]


def _fit(image: Tensor, height: int, width: int) -> float:
    """The factor by which an image just fits."""
    return min(height / image.shape[-2], width / image.shape[-1])


def _scaled(sample: Sample, scale: float, antialias: bool) -> Sample:
    """A sample times a factor."""
    image, boxes, labels = sample
    size = round(scale * image.shape[-2]), round(scale * image.shape[-1])
    return *resized(image, boxes, size, antialias), labels


def _paste(canvas: Tensor, tile: Tensor, top: int, left: int, alpha: Tensor | None = None) -> None:
    """Write the part of a tile that lies on the canvas.

    Args:
        canvas: uint8 (3, H, W), changed in place.
        tile: uint8 (3, h, w).
        top: of the tile on the canvas, which may be negative.
        left: likewise.
        alpha: opacity 0..1, which broadcasts with the tile; None: 1.
    """
    y1, x1 = max(0, top), max(0, left)
    y2, x2 = min(canvas.shape[-2], top + tile.shape[-2]), min(canvas.shape[-1], left + tile.shape[-1])
    if y2 <= y1 or x2 <= x1:
        return
    part = tile[:, y1 - top : y2 - top, x1 - left : x2 - left]
    under = canvas[:, y1:y2, x1:x2]
    under.copy_(part if alpha is None else torch.lerp(under.float(), part.float(), alpha).round())


def _cut(image: Tensor, box: Tensor, scale: float, antialias: bool) -> tuple[Tensor, Tensor]:
    """An object of an image times a factor, in whole pixels, and its box there."""
    x1, y1 = (math.floor(value) for value in box[:2].tolist())
    x2, y2 = (math.ceil(value) for value in box[2:].tolist())
    piece, boxes, _ = _scaled((image[:, y1:y2, x1:x2], (box - torch.tensor([x1, y1] * 2))[None], box), scale, antialias)
    return piece, boxes[0]


def _feathered(piece: Tensor, feather: float) -> Tensor:
    """Opacity (h, w) that falls towards the edges, over a share of the shorter side."""
    height, width = piece.shape[-2:]
    edge = max(feather * min(height, width), 1e-6)
    down, across = (torch.arange(side) + 0.5 for side in (height, width))
    near = torch.minimum(torch.minimum(down, height - down)[:, None], torch.minimum(across, width - across)[None])
    return (near / edge).clamp(max=1)
