"""Large images whole, in tiles, and through supervision's InferenceSlicer: AP against time and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import supervision as sv
import torch
from rich.table import Table
from torch import Tensor

from benchmarks.measure import BenchmarkSettings, peak_mb
from benchmarks.report import figures_table, ratios_to, versions
from doublehead.common.console import Console
from doublehead.data.check import read_record
from doublehead.data.dataset import open_dataset
from doublehead.data.images import to_tensor
from doublehead.data.records import Record, Split
from doublehead.evaluation.analysis.breakdown import judge
from doublehead.evaluation.coco import evaluate_detections
from doublehead.evaluation.evaluate import for_classes, of_classes, require_known_classes
from doublehead.inference.detections import Detections
from doublehead.inference.predictor import Predictor, load

SHOWN = 0.3
"""Score from which doubles are counted."""


@dataclass(frozen=True)
class Tiling:
    """How to cut, for every case that does."""

    side: int
    overlap: float
    at_once: int = 4


@dataclass
class _Case:
    """One way to detect, and what it found."""

    name: str
    predictor: Predictor
    slicer: sv.InferenceSlicer | None = None
    seconds: list[float] = field(default_factory=list)  # image by image
    peaks: list[float | None] = field(default_factory=list)  # of the first image
    results: list[dict[str, Any]] = field(default_factory=list)
    doubles: int = 0

    def detect(self, image: Tensor) -> Detections:
        if self.slicer is None:
            return self.predictor.detect([image])[0]
        found = self.slicer(image.permute(1, 2, 0).numpy())
        order = np.argsort(-found.confidence, kind="stable")[: self.predictor.options.detections]
        known = self.predictor.categories
        return Detections(found.xyxy[order], found.confidence[order], found.class_id[order] + 1, known.names, known.ids)

    def look(self, record: Record, image: Tensor) -> None:
        """Detect in an image, timed."""
        if not self.seconds:
            self.peaks.append(peak_mb(lambda: self.detect(image), self.predictor.device))
        began = time.perf_counter()
        found = self.detect(image)
        self.seconds.append(time.perf_counter() - began)
        self.results += found.to_coco(record.image_id)
        self.doubles += _doubles(record, found.above(SHOWN))


@dataclass(frozen=True)
class TilesReport:
    """All ways, whole images first."""

    settings: dict[str, Any]
    versions: dict[str, Any]
    rows: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Settings, versions and figures."""
        return {"command": "benchmark tiles", **vars(self)}

    def table(self) -> Table:
        """A row for each way."""
        columns = ("AP", "AP50", "doubles", "seconds per image", "ratio", "peak MB")
        table = figures_table("way", columns, self.versions)
        for row in self.rows:
            peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
            figures = (f"{row['ap']:.3f}", f"{row['ap50']:.3f}", f"{row['doubles']}")
            table.add_row(row["name"], *figures, f"{row['seconds']:.2f}", f"{row['ratio']:.1f}", peak)
        return table


def compare_tiles(
    weights: str | Path,
    data: str | Path,
    split: str,
    tiling: Tiling,
    mosaic: int = 1,
    detections: int = 1000,
    threads: int | None = None,
    device: str = "auto",
) -> TilesReport:
    """Detect in the images of a split, or in mosaics of them, in every way; the ways take turns, image by image.

    Args:
        weights: as of `load`.
        data: the dataset's folder or YAML.
        split: which of its splits.
        tiling: of all ways that cut.
        mosaic: each image is made of so many by so many images of the split; the rest is left out. 1: as they are.
        detections: most in an image, in every way, and in each tile.
        threads: of torch on the CPU; None: its own choice.
        device: where to compute.

    Raises:
        DoubleheadError: weights, data or split have a mistake.
    """
    chosen = open_dataset(data).read(split)
    predictor = load(weights, device, settings={"detections": detections})
    require_known_classes(predictor.categories, chosen.categories)
    predictor = for_classes(predictor, chosen.categories)
    cases, records = list(_cases(predictor, tiling)), list[Record]()
    with BenchmarkSettings("640x640", threads=threads).with_threads():
        with Console().progress("detecting", len(chosen.records) // mosaic**2) as advance:
            for record, image in _images(chosen, mosaic):
                records.append(record)
                for case in cases:
                    case.look(record, image)
                advance()
        rows = [_figures(case, cases[0], records, chosen) for case in cases]
        said = {"data": str(data), "split": split, "mosaic": mosaic, "images": len(records), **vars(tiling)}
        return TilesReport(said, versions(predictor.device), rows)


def _cases(predictor: Predictor, tiling: Tiling) -> Iterator[_Case]:
    cut = {"tiles": tiling.side, "overlap": tiling.overlap, "tile_batch": tiling.at_once}
    yield _Case("whole", predictor)
    yield _Case("tiles, NMS", predictor.with_options(**cut))
    yield _Case("tiles, WBF", predictor.with_options(**cut, tile_merge="wbf"))

    def slices(images: list[np.ndarray]) -> list[sv.Detections]:
        tensors = [torch.from_numpy(image).permute(2, 0, 1).contiguous() for image in images]
        return [found.to_supervision() for found in predictor.detect(tensors)]

    for name, how in (("NMS", sv.OverlapFilter.NON_MAX_SUPPRESSION), ("merging", sv.OverlapFilter.NON_MAX_MERGE)):
        slicer = sv.InferenceSlicer(
            slices,
            slice_wh=tiling.side,
            overlap_wh=int(tiling.side * tiling.overlap),
            overlap_filter=how,
            overlap_metric=sv.OverlapMetric.IOU if name == "NMS" else sv.OverlapMetric.IOS,
            batch_size=tiling.at_once,
        )
        yield _Case(f"supervision's slicer, {name}", predictor, slicer)


def _images(split: Split, mosaic: int) -> Iterator[tuple[Record, Tensor]]:
    """Images with their records; or mosaics, one in memory at a time."""
    many = mosaic**2
    for start in range(0, len(split.records) - many + 1, many):
        parts = split.records[start : start + many]
        width, height = (max(getattr(part, side) for part in parts) for side in ("width", "height"))
        canvas = torch.zeros(3, mosaic * height, mosaic * width, dtype=torch.uint8)
        for place, part in enumerate(parts):
            y, x = (place // mosaic) * height, (place % mosaic) * width
            canvas[:, y : y + part.height, x : x + part.width] = to_tensor(read_record(part))
        yield _mosaic_record(parts, start + 1, mosaic, (width, height)), canvas


def _mosaic_record(parts: Sequence[Record], number: int, mosaic: int, cell: tuple[int, int]) -> Record:
    corners = [np.array([(place % mosaic) * cell[0], (place // mosaic) * cell[1]] * 2) for place in range(len(parts))]
    return Record(
        number,
        parts[0].path,
        mosaic * cell[0],
        mosaic * cell[1],
        np.concatenate([part.boxes + corner for part, corner in zip(parts, corners, strict=True)]).astype(np.float32),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "crowd", "areas")),
    )


def _doubles(record: Record, found: Detections) -> int:
    """Detections of objects that a better detection has found: duplicates, and parts."""
    judged = judge(record, found.boxes, found.scores, found.labels)
    objects = {int(place) for place, kind in zip(judged.objects, judged.kinds, strict=True) if kind == "hit"}
    kinds = list(zip(judged.kinds, judged.objects, strict=True))
    return sum(kind == "duplicate" or (kind == "localisation" and int(place) in objects) for kind, place in kinds)


def _figures(case: _Case, first: _Case, records: Sequence[Record], split: Split) -> dict[str, Any]:
    results = of_classes(case.results, split.categories)
    metrics = evaluate_detections(records, split.categories, results, case.predictor.options.detections)
    return {
        "name": case.name,
        "ap": metrics["AP"],
        "ap50": metrics["AP50"],
        "doubles": case.doubles,
        "seconds": median(case.seconds),
        "ratio": median(ratios_to(first.seconds, case.seconds)),
        "peak_mb": case.peaks[0],
    }
