"""Results of dataset readers: a record per image, the categories, and the findings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from doublehead.common.categories import Categories as Categories
from doublehead.common.errors import DoubleheadError, printable

COORDINATE_LIMIT = 1e9  # pixels; areas of larger boxes would turn infinite in float32
ID_LIMIT = 2**53  # whole numbers up to it survive every reader of JSON
KEPT = 1000  # places remembered of each kind of finding

Box = tuple[float, float, float, float]  # xyxy in pixels


class ImageBytes(Protocol):
    """An encoded image that is no file of its own, such as a cell of a Parquet table."""

    def read(self) -> bytes:
        """Its bytes."""
        ...


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
    content: ImageBytes | None = None  # where the image is no file of its own; `path` then only names it
    weight: float = 1.0  # how often it is seen in training, as annotated; NaN: what is annotated is no such number

    @classmethod
    def of(
        cls,
        image_id: int,
        path: Path,
        size: tuple[int, int],
        boxes: Sequence[Box],
        labels: Sequence[int],
        crowd: Sequence[bool] = (),
        areas: Sequence[float] | None = None,
        content: ImageBytes | None = None,
        weight: Any = 1.0,
    ) -> Record:
        """A record of plain values.

        Args:
            image_id: the dataset's own, or a number.
            path: of the image.
            size: width and height in pixels.
            boxes: xyxy in pixels.
            labels: of the boxes, 1..C.
            crowd: whether each box is a crowd; empty: none is.
            areas: of the objects; None: those of the boxes.
            content: the image, where it is no file of its own.
            weight: how often it is seen in training; a value that is no number from 0 up is kept as NaN.
        """
        number = isinstance(weight, int | float) and not isinstance(weight, bool) and weight >= 0
        edges = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        return cls(
            image_id,
            path,
            *size,
            edges,
            np.array(labels, dtype=np.int64),
            np.array(crowd or [False] * len(edges), dtype=bool),
            (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
            if areas is None
            else np.array(areas, dtype=np.float32),
            content,
            float(weight) if number else math.nan,
        )

    def encoded(self) -> bytes | None:
        """The bytes of an image that is no file of its own; None: `path` is the file."""
        return self.content.read() if self.content else None

    def training_boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (M, 4) clipped to the image, and their labels (M,), without crowds."""
        keep = ~self.crowd
        boxes = self.boxes[keep].copy()
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, self.width)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, self.height)
        return boxes, self.labels[keep]


@dataclass(frozen=True)
class Place:
    """Where something was found: in words, and for a picture of it the image and the box."""

    text: str  # of an error: the whole sentence
    image: Path | None = None
    box: Box | None = None
    beside: Path | None = None  # another image, to compare with


@dataclass
class Finding:
    """A kind of problem found. Errors prevent training and evaluation of a split; warnings do not."""

    kind: str  # in the plural: "boxes without area ignored"
    error: bool
    count: int = 0
    places: list[Place] = field(default_factory=list)  # the first `KEPT`


class Findings:
    """Problems found, by kind."""

    def __init__(self) -> None:
        self.by_kind: dict[str, Finding] = {}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.by_kind.values())

    @property
    def counts(self) -> dict[str, int]:
        """Kind -> how often."""
        return {finding.kind: finding.count for finding in self}

    @property
    def errors(self) -> list[Finding]:
        """The kinds that prevent training."""
        return [finding for finding in self if finding.error]

    def warn(
        self, kind: str, text: str, image: Path | None = None, box: Box | None = None, beside: Path | None = None
    ) -> None:
        """Count one more of something that was corrected, or that training tolerates."""
        self._add(kind, False, Place(printable(text), image, box, beside))

    def fault(self, kind: str, sentence: str, image: Path | None = None) -> None:
        """Count one more of something that must be fixed."""
        self._add(kind, True, Place(printable(sentence), image))

    @contextmanager
    def collect(self, kind: str, image: Path | None = None) -> Iterator[None]:
        """Context that counts a DoubleheadError as a fault, of its own kind or else of this one, and continues."""
        try:
            yield
        except DoubleheadError as error:
            self.fault(error.kind or kind, str(error), image)

    def _add(self, kind: str, error: bool, place: Place) -> None:
        finding = self.by_kind.setdefault(kind, Finding(kind, error))
        finding.count += 1
        if len(finding.places) < KEPT:
            finding.places.append(place)


def note_box(box: Box, width: float, height: float, where: str, image: Path, findings: Findings) -> bool:
    """Return whether a box has area inside its image, and warn in `findings` if it has none or extends beyond it.

    Up to half a pixel beyond the edge counts as rounding.
    """
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        findings.warn("boxes without area ignored", where, image, box)
        return False
    if min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
        findings.warn("boxes outside the image ignored", where, image, box)
        return False
    if x1 < -0.5 or y1 < -0.5 or x2 > width + 0.5 or y2 > height + 0.5:
        findings.warn("boxes past the image's edge clipped for training", where, image, box)
    return True


@dataclass(frozen=True)
class Split:
    """One split of a dataset: its records, in the dataset's order."""

    name: str
    records: list[Record]
    categories: Categories
    findings: Findings
    made: str = ""  # how, where the dataset has no splits of its own: "80/10/10 into train, val, test"

    def sound(self) -> Split:
        """Return this split if it is valid for training and evaluation.

        Raises:
            DoubleheadError: reading found faults; the message has the first, and the number of others.
        """
        faults = self.findings.errors
        more = sum(finding.count for finding in faults) - 1
        if faults:
            behind = f" (and {more} more like this; `doublehead check` lists them)" if more else ""
            raise DoubleheadError(f"{faults[0].places[0].text}{behind}")
        return self
