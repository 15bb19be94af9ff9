"""A checkpoint beside the files that were exported of it: time, AP, and whether they find the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.measure import WARM_UP, BenchmarkSettings, Workload, alternate
from benchmarks.report import figures_table, ratios_to, versions
from doublehead.common.console import Console
from doublehead.data.check import read_record
from doublehead.data.dataset import open_dataset
from doublehead.data.images import to_tensor
from doublehead.data.records import Split
from doublehead.deploy.parity import Parity, RawDetections, compare
from doublehead.evaluation.coco import evaluate_detections
from doublehead.evaluation.evaluate import of_classes, require_known_classes
from doublehead.inference.detections import Detections
from doublehead.inference.predictor import Predictor, load

IMAGES_TIMED = 16


@dataclass(frozen=True)
class ExportTiming:
    """One file's figures."""

    name: str
    seconds: list[float]  # per image, round by round
    ap: float
    parity: Parity  # with the checkpoint


@dataclass(frozen=True)
class ExportReport:
    """All of them, the checkpoint first."""

    settings: dict[str, Any]
    versions: dict[str, Any]
    rows: list[ExportTiming]

    def to_json(self) -> dict[str, Any]:
        """Settings, versions and figures."""
        rows = [self._figures(row) for row in self.rows]
        return {"command": "benchmark export", "settings": self.settings, "versions": self.versions, "rows": rows}

    def table(self) -> Table:
        """A row for each file."""
        columns = ("seconds per image", "ratio", "AP", "matched", "of", "score difference")
        table = figures_table("file", columns, self.versions)
        for row in map(self._figures, self.rows):
            table.add_row(
                row["name"],
                f"{row['seconds']:.4f}",
                f"{row['ratio']:.2f}",
                f"{row['ap']:.4f}",
                f"{row['matched']}",
                f"{row['detections']}",
                f"{row['score_difference']:.1e}",
            )
        return table

    def _figures(self, row: ExportTiming) -> dict[str, Any]:
        return {
            "name": row.name,
            "seconds": median(row.seconds),
            "ratio": median(ratios_to(self.rows[0].seconds, row.seconds)),
            "ap": row.ap,
            "matched": row.parity.matched,
            "detections": row.parity.detections,
            "score_difference": row.parity.difference,
        }


def compare_exports(
    weights: Sequence[str | Path], data: str | Path, split: str = "val", repeats: int = 3, threads: int | None = None
) -> ExportReport:
    """Measure a checkpoint and its exported files on the same images, one image at a time, on the CPU.

    AP and parity are of the whole split, times of its first 16 images, the files in turn.

    Args:
        weights: the checkpoint, which the others are compared with, then the files.
        data: the dataset's folder or YAML.
        split: which of its splits.
        repeats: rounds of timing.
        threads: of every runtime; None: torch's own choice.

    Raises:
        DoubleheadError: a file, the data or the split has a mistake.
    """
    chosen = open_dataset(data).read(split)
    device = torch.device("cpu")
    with BenchmarkSettings("640x640", repeats=repeats, threads=threads).with_threads():
        predictors = {str(path): load(path, "cpu") for path in weights}
        for predictor in predictors.values():
            require_known_classes(predictor.categories, chosen.categories)
        images = [to_tensor(read_record(record)) for record in chosen.records]
        timed = images[:IMAGES_TIMED]
        with Console().progress("detecting", len(images) * len(predictors)) as advance:
            found = {name: _detect(predictor, images, advance) for name, predictor in predictors.items()}
        runs = {name: _runner(predictor, timed) for name, predictor in predictors.items()}
        with Console().progress("measuring", (WARM_UP + repeats) * len(runs)) as advance:
            seconds = alternate(runs, repeats, device, advance)
        expected = [_tensors(detections) for detections in next(iter(found.values()))]
        rows = [
            ExportTiming(
                name,
                [value / len(timed) for value in seconds[name]],
                _ap(chosen, own, predictors[name].options.detections),
                compare(expected, [_tensors(detections) for detections in own]),
            )
            for name, own in found.items()
        ]
        said = {"data": str(data), "split": split, "images": len(images), "timed": len(timed), "repeats": repeats}
        return ExportReport(said, versions(device), rows)


def _detect(predictor: Predictor, images: Sequence[Tensor], advance: Workload) -> list[Detections]:
    found = []
    for image in images:
        found += predictor.detect([image])
        advance()
    return found


def _runner(predictor: Predictor, images: Sequence[Tensor]) -> Workload:
    return lambda: [predictor.detect([image]) for image in images]


def _tensors(detections: Detections) -> RawDetections:
    return {name: torch.from_numpy(getattr(detections, name)) for name in ("boxes", "scores", "labels")}


def _ap(split: Split, found: Sequence[Detections], most: int) -> float:
    pairs = zip(split.records, found, strict=True)
    results = of_classes([item for record, own in pairs for item in own.to_coco(record.image_id)], split.categories)
    return evaluate_detections(split.records, split.categories, results, most)["AP"]
