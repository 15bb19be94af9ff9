"""COCO's detection metrics: average precision and recall, and precision-recall curves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
from rich.table import Table
from rich.text import Text

from doublehead.common.errors import DoubleheadError
from doublehead.data.records import Categories, Record
from doublehead.evaluation.matched import match
from doublehead.evaluation.thresholds import sweep

RECALLS = np.linspace(0, 1, 101)
"""Recall at each point of a curve."""

_AT_50, _AT_75 = 0, 5  # places of IoU 0.5 and 0.75 among COCO's thresholds 0.50, 0.55 ... 0.95
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # COCO's area ranges: all, below 32x32, up to 96x96, above
_MOST = 2  # place of "100 detections per image and class" among COCO's limits 1, 10, 100
USUAL = 100
"""COCO's maximum detections per image and class."""


@dataclass(frozen=True)
class PrecisionCurve:
    """Precision against `RECALLS` for one class at one IoU.

    Both arrays are (101,) float64. Precision and score are 0 at recalls that are never reached, and NaN for a class
    without ground truth.
    """

    precision: np.ndarray
    score: np.ndarray  # the least score that must be accepted for this recall


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class in 0..1 (NaN without ground truth), its number of boxes, and its two curves."""

    name: str
    category_id: int
    ap: float
    ap50: float
    ap75: float
    boxes: int  # annotated, crowds not counted
    detections: int
    curve50: PrecisionCurve
    curve75: PrecisionCurve


@dataclass(frozen=True)
class Metrics:
    """COCO's metrics for one set of images.

    `totals` contains AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm and ARl, each in 0..1. Metrics without
    ground truth are NaN (-1 in COCO's own tools), and null in JSON.
    """

    totals: dict[str, float]
    classes: tuple[ClassMetrics, ...]
    images: int
    boxes: int  # annotated, crowds not counted
    detections: int
    most: int = USUAL  # detections of an image and class that counted
    best_threshold: float = math.nan  # score of the highest F1 at IoU 0.5, all classes together

    def __getitem__(self, name: str) -> float:
        """Return one of the twelve metrics, such as metrics["AP50"], or metrics["best_threshold"]."""
        return self.best_threshold if name == "best_threshold" else self.totals[name]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values for `json.dump`; NaN becomes null, curves keep five decimals."""
        return {
            **{name: _plain(value) for name, value in self.totals.items()},
            "images": self.images,
            "boxes": self.boxes,
            "detections": self.detections,
            "max_detections": self.most,
            "best_threshold": _plain(self.best_threshold),
            "recall": _plain_all(RECALLS),
            "classes": [
                {
                    "name": c.name,
                    "category_id": c.category_id,
                    "AP": _plain(c.ap),
                    "AP50": _plain(c.ap50),
                    "AP75": _plain(c.ap75),
                    "boxes": c.boxes,
                    "detections": c.detections,
                    "precision50": _plain_all(c.curve50.precision),
                    "score50": _plain_all(c.curve50.score),
                    "precision75": _plain_all(c.curve75.precision),
                    "score75": _plain_all(c.curve75.score),
                }
                for c in self.classes
            ],
        }

    def table(self) -> Table:
        """Table for the console: AP, AP50, AP75 in per cent and counts, by class, with the total in the last row."""
        title = f"{self.images} images, best {self.most} detections of each class"
        table = Table("class", title=title, show_footer=True)
        table.columns[0].footer = "all"
        for name in ("AP", "AP50", "AP75"):
            table.add_column(name, f"{_percent(self[name])}", justify="right")
        table.add_column("boxes", f"{self.boxes}", justify="right")
        table.add_column("detections", f"{self.detections}", justify="right")
        for c in self.classes:
            figures = (_percent(value) for value in (c.ap, c.ap50, c.ap75))
            table.add_row(Text(c.name), *figures, f"{c.boxes}", f"{c.detections}")
        return table

    def totals_table(self) -> Table:
        """Table for the console: the twelve metrics in per cent."""
        table = Table("", "all", "IoU 0.50", "IoU 0.75", "small", "medium", "large", title="average, in %")
        for column in table.columns[1:]:
            column.justify = "right"
        table.add_row("precision", *(_percent(self[name]) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")))
        table.add_row(
            "recall", _percent(self["AR100"]), "", "", *(_percent(self[name]) for name in ("ARs", "ARm", "ARl"))
        )
        for most in (1, 10):
            table.add_row(f"recall of best {most}", _percent(self[f"AR{most}"]), "", "", "", "", "")
        return table


def evaluate_detections(
    records: Sequence[Record],
    categories: Categories,
    results: Sequence[dict[str, Any]],
    most: int = USUAL,
) -> Metrics:
    """Compute COCO's metrics, identical to pycocotools to the last digit.

    Args:
        records: annotated images; crowds are ignored by COCO's rules, and `areas` determine small, medium, large.
        categories: classes of the records.
        results: detections of all images in COCO's result format, as from `Detections.to_coco`, with the dataset's
            category ids.
        most: maximum detections per image and class, best first; at least COCO's 100.

    Raises:
        DoubleheadError: a result has an unknown image or category, or a score that is not finite.
    """
    annotated = truth(records, categories)
    _check(results, annotated)
    gt = hotcoco.COCO(annotated)
    evaluation = hotcoco.COCOeval(gt, gt.load_res(list(results)), "bbox")
    most = max(USUAL, most)
    evaluation.params.max_dets = [1, 10, most]
    evaluation.evaluate()
    evaluation.accumulate()  # and no summarize(), which prints
    assert evaluation.eval is not None
    # precision and scores: (IoU 10, recall 101, class, area 4, limit 3); recall: (IoU 10, class, area 4, limit 3).
    # -1 marks what has no truth to measure against.
    precision, recall = (np.where(evaluation.eval[k] < 0, np.nan, evaluation.eval[k]) for k in ("precision", "recall"))
    scores = np.where(np.isnan(precision), np.nan, evaluation.eval["scores"])
    boxes = Counter(a["category_id"] for a in annotated["annotations"] if not a["iscrowd"])
    detections = Counter(r["category_id"] for r in results)
    order = {category: place for place, category in enumerate(sorted(categories.ids))}  # hotcoco sorts them

    def of_class(name: str, category: int) -> ClassMetrics:
        p, s = (array[:, :, order[category], _ALL, _MOST] for array in (precision, scores))
        return ClassMetrics(
            name,
            category,
            *(_mean(p), _mean(p[_AT_50]), _mean(p[_AT_75])),
            *(boxes[category], detections[category]),
            *(PrecisionCurve(p[i].copy(), s[i].copy()) for i in (_AT_50, _AT_75)),
        )

    return Metrics(
        totals=_totals(precision, recall),
        classes=tuple(
            of_class(name, category) for name, category in zip(categories.names, categories.ids, strict=True)
        ),
        images=len(records),
        boxes=boxes.total(),
        detections=len(results),
        most=most,
        best_threshold=sweep(match(records, categories, results)).best.score,
    )


def average_precision(scores: np.ndarray, hits: np.ndarray, objects: int) -> float:
    """COCO's AP at one IoU for one class, interpolated at 101 recalls, from matched detections.

    Args:
        scores: (N,) in any order.
        hits: (N,) bool, whether each detection is a true positive.
        objects: number of objects, at least one.
    """
    return float(hotcoco.metrics.average_precision(scores, hits, objects))


def truth(records: Sequence[Record], categories: Categories) -> dict[str, Any]:
    """Convert records to the content of a COCO annotation file."""
    annotations: list[dict[str, Any]] = []
    for record in records:
        x1, y1, x2, y2 = record.boxes.astype(np.float64).reshape(-1, 4).T
        boxes = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1).tolist()
        for box, label, crowd, area in zip(boxes, record.labels, record.crowd, record.areas, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # never 0, which COCO's matching takes for "no match"
                    "image_id": record.image_id,
                    "category_id": categories.ids[label - 1],
                    "bbox": box,
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    return {
        "images": [{"id": r.image_id, "width": r.width, "height": r.height} for r in records],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in zip(categories.ids, categories.names, strict=True)],
    }


def _check(results: Sequence[dict[str, Any]], truth: dict[str, Any]) -> None:
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for result in results:
        if result["image_id"] not in images:
            raise DoubleheadError(
                f"a detection is of image {result['image_id']}, which is not among the annotated images"
            )
        if result["category_id"] not in categories:
            raise DoubleheadError(
                f"a detection in image {result['image_id']} has category {result['category_id']}, unknown to the data"
            )
        if not math.isfinite(result["score"]):
            raise DoubleheadError(f"a detection in image {result['image_id']} has the score {result['score']}")


def _totals(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's twelve metrics from its arrays of precision and recall."""
    sizes = {"s": _SMALL, "m": _MEDIUM, "l": _LARGE}
    everything = precision[..., _ALL, _MOST]
    return {
        "AP": _mean(everything),
        "AP50": _mean(everything[_AT_50]),
        "AP75": _mean(everything[_AT_75]),
        **{f"AP{letter}": _mean(precision[..., size, _MOST]) for letter, size in sizes.items()},
        **{f"AR{most}": _mean(recall[..., _ALL, place]) for place, most in enumerate((1, 10, 100))},
        **{f"AR{letter}": _mean(recall[..., size, _MOST]) for letter, size in sizes.items()},
    }


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan


def _plain(value: float, digits: int | None = None) -> float | None:
    return None if math.isnan(value) else float(value) if digits is None else round(float(value), digits)


def _plain_all(values: np.ndarray) -> list[float | None]:
    return [_plain(value, 5) for value in values]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
