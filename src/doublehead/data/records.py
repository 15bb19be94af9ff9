"""What the readers give: one record per image, the categories, and a count of what they met."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from doublehead.categories import Categories as Categories

FLOAT32_LIMIT = 3.0e38  # a coordinate beyond it would turn infinite in an array


@dataclass(frozen=True)
class Record:
    """One annotated image, as the dataset has it; sizes and boxes in pixels after EXIF orientation."""

    image_id: int
    path: Path
    width: int
    height: int
    boxes: np.ndarray  # (N, 4) float32 xyxy, as annotated
    labels: np.ndarray  # (N,) int64, 1..C
    crowd: np.ndarray  # (N,) bool: kept for evaluation, left out of training
    areas: np.ndarray  # (N,) float32, as annotated (COCO: of the mask), for the size ranges of evaluation

    def training_boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (M, 4) clipped to the image, and their labels (M,), without crowds."""
        keep = ~self.crowd
        boxes = self.boxes[keep].copy()
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, self.width)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, self.height)
        return boxes, self.labels[keep]


@dataclass
class Findings:
    """What a reader met and mended: kind -> how often, with a few examples."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, example: str) -> None:
        """Count one more of `kind`; the first three are kept as examples."""
        self.counts[kind] += 1
        if len(self.examples[kind]) < 3:
            self.examples[kind].append(example)


def note_box(
    box: tuple[float, float, float, float], width: float, height: float, where: str, findings: Findings
) -> bool:
    """Say whether a box (xyxy) has area inside its image, and count it in `findings` if it has none or passes the edge.

    Half a pixel past the edge is rounding and not worth a word.
    """
    x1, y1, x2, y2 = box
    if min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
        findings.add("boxes without area left out", where)
        return False
    if x1 < -0.5 or y1 < -0.5 or x2 > width + 0.5 or y2 > height + 0.5:
        findings.add("boxes past the image's edge clipped for training", where)
    return True


@dataclass(frozen=True)
class Split:
    """One split of a dataset: its records, in the dataset's order."""

    name: str
    records: list[Record]
    categories: Categories
    findings: Findings
