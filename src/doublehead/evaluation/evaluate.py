"""A model measured on a split of a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doublehead.categories import Categories
from doublehead.console import Console
from doublehead.data.dataset import open_dataset
from doublehead.data.loader import default_workers, evaluation_loader
from doublehead.data.records import Split
from doublehead.errors import DoubleheadError
from doublehead.evaluation.coco import Metrics, evaluate_detections
from doublehead.prediction import Predictor, load


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and the detections it was measured on, in COCO's result format."""

    metrics: Metrics
    results: list[dict[str, Any]]

    def save(self, folder: Path) -> None:
        """Write metrics.json and predictions.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(self.metrics.to_json(), indent=1), encoding="utf-8")
        (folder / "predictions.json").write_text(json.dumps(self.results), encoding="utf-8")


def predict_split(
    predictor: Predictor,
    split: Split,
    batch_size: int,
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """Detections in this rank's images of a split, in COCO's result format; `progress` is told images done."""
    results: list[dict[str, Any]] = []
    loader = evaluation_loader(split, batch_size, default_workers(world) if workers is None else workers, rank, world)
    for images, records in loader:
        for record, detections in zip(records, predictor.detect(images), strict=True):
            results += detections.to_coco(record.image_id)
        if progress:
            progress(len(images))
    return results


def evaluate(
    weights: str | Path | Predictor,
    data: str | Path,
    split: str = "val",
    batch_size: int = 4,
    workers: int | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Evaluation:
    """Run a model over one split of a dataset and measure it as COCO does.

    Args:
        weights: a checkpoint's path, or a model already loaded.
        data: the dataset's folder or YAML.
        split: which of its splits.
        batch_size: images that go through the model at once.
        workers: processes that decode images; None: by the cores.
        device: where to compute, if `weights` is a path.
        progress: whether to show a bar.

    Raises:
        DoubleheadError: weights, data or split have a mistake, or the classes of weights and data differ.
    """
    predictor = weights if isinstance(weights, Predictor) else load(weights, device)
    chosen = open_dataset(data).read(split)
    require_same_classes(predictor.categories, chosen.categories)
    with Console(progress).progress("measuring", len(chosen.records)) as advance:
        results = predict_split(predictor, chosen, batch_size, workers, progress=advance)
    return Evaluation(evaluate_detections(chosen.records, chosen.categories, results), results)


def require_same_classes(model: Categories, data: Categories) -> None:
    """Refuse to measure a model on data of other classes.

    Raises:
        DoubleheadError: names, ids or their number differ.
    """
    if len(model) != len(data):
        raise DoubleheadError(
            f"the weights know {len(model)} classes ({_few(model)}), the data {len(data)} ({_few(data)}): "
            "use weights trained on this data's classes"
        )
    if model != data:
        wrong = next(i for i in range(len(model)) if (model.names[i], model.ids[i]) != (data.names[i], data.ids[i]))
        raise DoubleheadError(
            f"class {wrong + 1} is `{model.names[wrong]}` (id {model.ids[wrong]}) to the weights, but "
            f"`{data.names[wrong]}` (id {data.ids[wrong]}) in the data: give both the same classes in the same order"
        )


def _few(categories: Categories) -> str:
    return ", ".join(categories.names[:4]) + (", ..." if len(categories) > 4 else "")
