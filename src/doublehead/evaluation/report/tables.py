"""Every number of the report as plain values: report.json, and a CSV for each table."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import doublehead
from doublehead.common.plain import plain
from doublehead.evaluation.coco import RECALLS
from doublehead.evaluation.report.figures import GRID
from doublehead.evaluation.report.groups import Group
from doublehead.evaluation.report.measured import FIGURES, ClassMeasured, Measured
from doublehead.evaluation.report.reliability import BINS, Reliability
from doublehead.evaluation.thresholds import Cut, Sweep

Row = dict[str, Any]

ALL = "all"
"""The row of all classes together."""

BACKGROUND, MISSED = "background", "missed"
"""The last row and the last column of the confusion matrix."""


def write_tables(one: Measured, folder: Path) -> None:
    """Write report.json and the CSV files into a folder that is there."""
    tables = {
        "classes": class_rows(one),
        "thresholds": _threshold_rows(one),
        "precision_recall": _curve_rows(one),
        "reliability": reliability_rows(one.reliability),
        "groups": [
            *group_rows("size", one.sizes),
            *group_rows("overlap", one.overlaps),
            *group_rows("objects in the image", one.crowding),
        ],
        "images": _image_rows(one),
    }
    for name, rows in tables.items():
        write_csv(folder / f"{name}.csv", rows)
    write_cells(folder / "confusion.csv", _confusion_lines(one))
    (folder / "report.json").write_text(json.dumps(plain(to_json(one)), indent=1), encoding="utf-8")


def to_json(one: Measured) -> dict[str, Any]:
    """What metrics.json does not have: intervals, thresholds, confusions, calibration and groups."""
    metrics = one.evaluation.metrics
    return {
        "doublehead": doublehead.__version__,
        "model": one.name,
        "split": one.evaluation.split.name,
        "images": metrics.images,
        "figures": {name: metrics[name] for name in metrics.totals},
        "intervals": one.intervals,
        "threshold": {"score": one.cut.score, "from_weights": one.brought} | _cut(one.cut),
        "best_threshold": {"score": one.best.score} | _cut(one.best),
        "classes": class_rows(one),
        "thresholds": {
            "score": GRID,
            ALL: _swept(one.sweep),
            "classes": [_swept(each.sweep) for each in one.classes],
        },
        "confusion": {
            "score": one.confusion.score,
            "rows": [*one.matched.categories.names, BACKGROUND],
            "columns": [*one.matched.categories.names, MISSED],
            "matrix": one.confusion.matrix,
        },
        "calibration_error": one.reliability.error,
        "calibration_error_before": None if one.uncalibrated is None else one.uncalibrated.error,
        "reliability": reliability_rows(one.reliability),
        "sizes": group_rows("size", one.sizes),
        "overlaps": group_rows("overlap", one.overlaps),
        "crowding": group_rows("objects in the image", one.crowding),
    }


def class_rows(one: Measured) -> list[Row]:
    """AP with intervals, counts, and the best cut of each class; all together in the last row."""
    metrics = one.evaluation.metrics
    rows = [
        {"class": c.name}
        | _figures({"AP": c.ap, "AP50": c.ap50, "AP75": c.ap75}, each.intervals)
        | {"boxes": c.boxes, "detections": c.detections}
        | _decisions(each.best, each.at_threshold)
        for c, each in zip(metrics.classes, one.classes, strict=True)
    ]
    whole = _figures({name: metrics[name] for name in FIGURES}, one.intervals)
    counts = {"boxes": metrics.boxes, "detections": metrics.detections}
    return [*rows, {"class": ALL} | whole | counts | _decisions(one.best, one.cut)]


def reliability_rows(found: Reliability) -> list[Row]:
    """A row for each range of the score."""
    return [
        {"from": place / BINS, "to": (place + 1) / BINS, "detections": int(n), "mean_score": s, "right": r}
        for place, (n, s, r) in enumerate(zip(found.count, found.score, found.right, strict=True))
    ]


def group_rows(by: str, groups: Sequence[Group]) -> list[Row]:
    """A row for each group."""
    return [
        {
            "by": by,
            "group": g.name,
            "images": g.images,
            "objects": g.objects,
            "found": g.found,
            "AP": g.ap,
            "precision": g.cut.precision if g.cut else None,
            "recall": g.recall,
            "f1": g.cut.f1 if g.cut else None,
        }
        for g in groups
    ]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of the same keys; what is not known is left empty."""
    write_cells(path, [list(rows[0]) if rows else [], *(list(row.values()) for row in rows)])


def write_cells(path: Path, lines: Iterable[Sequence[Any]]) -> None:
    """Write lines of cells, the header first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_cell(value) for value in line] for line in lines)


def _figures(values: dict[str, float], intervals: dict[str, tuple[float, float]]) -> Row:
    ends = {f"{name}_{end}": intervals[name][place] for name in values for place, end in enumerate(("low", "high"))}
    return {key: value for name in values for key, value in ((name, values[name]), *_ends(name, ends))}


def _ends(name: str, ends: Row) -> list[tuple[str, float]]:
    return [(key, ends[key]) for key in (f"{name}_low", f"{name}_high")]


def _decisions(best: Cut, at: Cut) -> Row:
    return (
        {"best_threshold": best.score, "best_precision": best.precision, "best_recall": best.recall, "best_f1": best.f1}
        | {"threshold": at.score, "precision": at.precision, "recall": at.recall, "f1": at.f1}
        | {"true": at.true, "false": at.false, "missed": at.missed}
    )


def _cut(cut: Cut) -> Row:
    return {name: getattr(cut, name) for name in ("precision", "recall", "f1", "true", "false", "missed")}


def _swept(sweep: Sweep) -> Row:
    cuts = [sweep.at(score) for score in GRID]
    return {name: [getattr(cut, name) for cut in cuts] for name in ("precision", "recall", "f1")}


def _sweeps(one: Measured) -> list[tuple[str, Sweep]]:
    def named(name: str, each: ClassMeasured) -> tuple[str, Sweep]:
        return name, each.sweep

    return [*map(named, one.matched.categories.names, one.classes), (ALL, one.sweep)]


def _threshold_rows(one: Measured) -> list[Row]:
    return [
        {"class": name, "threshold": float(score)} | _cut(sweep.at(score))
        for name, sweep in _sweeps(one)
        for score in GRID
    ]


def _curve_rows(one: Measured) -> list[Row]:
    return [
        {"class": c.name, "IoU": iou, "recall": float(r), "precision": p, "score": s}
        for c in one.evaluation.metrics.classes
        for iou, curve in ((0.5, c.curve50), (0.75, c.curve75))
        for r, p, s in zip(RECALLS, curve.precision, curve.score, strict=True)
    ]


def _confusion_lines(one: Measured) -> list[list[Any]]:
    names = one.matched.categories.names
    counts = zip((*names, BACKGROUND), one.confusion.matrix.tolist(), strict=True)
    return [["truth", *names, MISSED], *([name, *row] for name, row in counts)]


def _image_rows(one: Measured) -> list[Row]:
    matched, truth, images = one.matched, one.matched.objects, len(one.matched.records)
    false = np.bincount(matched.image[matched.false & (matched.score >= one.cut.score)], minlength=images)
    objects = np.bincount(truth.image[~truth.crowd], minlength=images)
    found = np.bincount(truth.image[matched.found_at >= one.cut.score], minlength=images)
    return [
        {
            "image_id": record.image_id,
            "file": record.path.name,
            "objects": int(n),
            "found": int(hits),
            "missed": int(n - hits),
            "false": int(wrong),
        }
        for record, n, hits, wrong in zip(matched.records, objects, found, false, strict=True)
    ]


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
