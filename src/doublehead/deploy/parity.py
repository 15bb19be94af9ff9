"""Comparison of the detections of two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torchvision.ops import box_iou

from doublehead.common.errors import DoubleheadError

IOU = 0.99
SCORE = 1e-3
SHARE = 0.9
"""Of detections that must have a partner. Where an image is resized by an odd ratio, torch's 16-bit weights change some
pixels by one level in 255, and rounding may decide a tie at NMS, or for the last place, the other way."""

RawDetections = dict[str, Tensor]
"""`boxes` (D, 4), `scores` (D,) and `labels` (D,) of one image."""


@dataclass(frozen=True)
class Parity:
    """Agreement of two models on a set of images."""

    images: int
    detections: int  # of the model that more were found by, image by image
    matched: int  # of one class, at IoU > 0.99, with scores within 1e-3
    difference: float  # largest, of the scores of detections of one class at IoU > 0.99

    @property
    def share(self) -> float:
        """Share of matched detections."""
        return self.matched / max(self.detections, 1)

    @property
    def holds(self) -> bool:
        """Whether the models agree."""
        return self.share >= SHARE

    def __str__(self) -> str:
        return (
            f"on {self.images} images {self.matched} of {self.detections} detections matched at IoU > {IOU}, "
            f"scores within {SCORE:g}, largest difference {self.difference:.1e}"
        )


def compare(expected: Sequence[RawDetections], found: Sequence[RawDetections]) -> Parity:
    """Match the detections of two models on the same images."""
    detections = matched = 0
    difference = 0.0
    for one, other in zip(expected, found, strict=True):
        detections += max(len(one["boxes"]), len(other["boxes"]))
        same = (box_iou(one["boxes"], other["boxes"]) > IOU) & (one["labels"][:, None] == other["labels"])
        apart = (one["scores"][:, None] - other["scores"]).abs()[same].tolist()  # NMS leaves no two partners of one
        matched += sum(value <= SCORE for value in apart)
        difference = max([difference, *apart])
    return Parity(len(expected), detections, matched, difference)


def require_parity(parity: Parity, name: str, remedy: str) -> None:
    """Require that two models agree.

    Raises:
        DoubleheadError: too few detections match.
    """
    if not parity.holds:
        raise DoubleheadError(f"{name} finds other detections than the checkpoint ({parity}); {remedy}")
