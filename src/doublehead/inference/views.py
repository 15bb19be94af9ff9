"""Test-time augmentation: detections in mirrored views or at other input sizes, fused."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from doublehead.config import InferenceOptions
from doublehead.inference.fusion import Found, fuse_opinions
from doublehead.inference.tiles import Detect


def detect_in_views(detect: Detect, images: list[Tensor], options: InferenceOptions) -> list[Found]:
    """Detect objects in all views that the options ask for, and fuse them by `weighted_box_fusion`.

    Args:
        detect: the model.
        images: RGB, uint8 (3, H, W).
        options: `flip` and `scales`; without both, `detect` is called once.
    """
    views = list(product((False, True) if options.flip else (False,), options.scales))
    opinions = [_seen(detect, images, options, *view) for view in views]
    if len(opinions) == 1:
        return opinions[0]
    return [fuse_opinions(of_image, options) for of_image in zip(*opinions, strict=True)]


def _seen(detect: Detect, images: list[Tensor], options: InferenceOptions, flip: bool, scale: float) -> list[Found]:
    """Detections of one view, in pixels of the images given."""
    sides = {name: round(scale * getattr(options, name)) for name in ("short_side", "long_side")}
    found = detect([image.flip(-1) for image in images] if flip else images, options.model_copy(update=sides))
    if flip:
        for image, one in zip(images, found, strict=True):
            x1, y1, x2, y2 = one["boxes"].unbind(1)
            one["boxes"] = torch.stack([image.shape[-1] - x2, y1, image.shape[-1] - x1, y2], 1)
    return found
