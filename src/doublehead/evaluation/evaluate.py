"""Evaluation of a model on one split of a dataset."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from doublehead.common.categories import Categories, some_classes
from doublehead.common.console import Console
from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError
from doublehead.common.faults import told
from doublehead.config import LOADER_TIMEOUT, SplitConfig
from doublehead.data.dataset import open_dataset, summary
from doublehead.data.loader import Waited, default_workers, evaluation_loader
from doublehead.data.own import is_own, own_dataset, own_split
from doublehead.data.records import Split
from doublehead.evaluation.coco import Metrics, evaluate_detections
from doublehead.evaluation.losses import SplitLosses
from doublehead.evaluation.matched import match
from doublehead.evaluation.thresholds import sweep
from doublehead.inference.exported import Exported
from doublehead.inference.predictor import Predictor, WeightsLike, load
from doublehead.model.checkpoint import read_notes


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on a split, with the detections in COCO's result format."""

    metrics: Metrics
    results: list[dict[str, Any]]  # uncalibrated; AP is computed from these
    decided: list[dict[str, Any]]  # calibrated scores, for thresholds; `results` itself if uncalibrated
    split: Split
    threshold: float | None  # decision threshold of the weights or the settings, if any
    waited: float  # share of the time in which the model waited for images
    leads: bool = True  # under torchrun, whether this process prints and writes

    def save(self, folder: Path) -> None:
        """Write metrics.json and predictions.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(self.metrics.to_json(), indent=1), encoding="utf-8")
        (folder / "predictions.json").write_text(json.dumps(self.results), encoding="utf-8")


@dataclass(frozen=True)
class SplitDetections:
    """Detections in a split, in COCO's result format, with timings."""

    results: list[dict[str, Any]]
    seconds: float  # total
    waited: float  # seconds spent waiting for images


def predict_split(
    predictor: Predictor,
    split: Split,
    batch_size: int,
    workers: int | None = None,
    processes: Distribution | None = None,
    progress: Callable[[int], object] | None = None,
    timeout: float = LOADER_TIMEOUT,
    losses: SplitLosses | None = None,
) -> SplitDetections:
    """Detect objects in a split, dividing its batches among the processes.

    The number of processes changes neither the detections nor their order.

    Args:
        predictor: the model.
        split: the images.
        batch_size: images per forward pass.
        workers: processes that decode images; None: chosen by the number of CPU cores.
        processes: the processes of the run; None: this one alone.
        progress: called with the number of images that this process has finished.
        timeout: maximum seconds for loading one batch.
        losses: collects the losses of the same images.
    """
    results: list[dict[str, Any]] = []
    rank, world = (processes.rank, processes.world) if processes else (0, 1)
    workers = default_workers(processes.local if processes else 1) if workers is None else workers
    began, loader = time.monotonic(), Waited(evaluation_loader(split, batch_size, workers, rank, world, timeout))
    for images, records in loader:
        found = predictor.detect(images) if losses is None else losses.detect(predictor, images, records)
        for record, detections in zip(records, found, strict=True):
            results += detections.to_coco(record.image_id)
        if progress:
            progress(len(images))
    if processes:
        results = processes.gather(results)
    results.sort(key=lambda result: result["image_id"])  # those of one image keep their order
    return SplitDetections(results, time.monotonic() - began, loader.seconds)


def evaluate(
    weights: WeightsLike | Predictor,
    data: str | Path | Any,
    split: str = "val",
    batch_size: int = 4,
    workers: int | None = None,
    device: str = "auto",
    progress: bool = False,
    precision: str = "fp32",
    settings: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    shares: SplitConfig | None = None,
) -> Evaluation:
    """Evaluate a model on one split of a dataset with COCO's metrics.

    Under torchrun the processes divide the images, and each returns the complete result.

    Args:
        weights: checkpoint path, published name, or loaded model; several paths or names make an ensemble.
        data: dataset folder or YAML, or a Python dataset (see `data.own.own_dataset`). Classes of the model that the
            dataset lacks are ignored.
        split: name of the split.
        batch_size: images per forward pass.
        workers: processes that decode images; None: chosen by the number of CPU cores.
        device: device to load `weights` on; ignored for a loaded model.
        progress: whether to show a progress bar.
        precision: as in `load`; ignored for a loaded model.
        settings: inference options by name; see `config.InferenceOptions`.
        classes: class names, if `data` is a Python dataset without a `classes` attribute.
        shares: how to split a dataset without splits; None: as in the training of `weights`, else as the dataset says.

    Returns:
        The metrics, and the detections they were computed from.

    Raises:
        DoubleheadError: weights, data or split are invalid, or the data has classes unknown to the weights.
        Fault: memory ran out, or a process of the run or of the loader was lost.
    """
    chosen = measured_split(weights, data, split, shares, classes)
    if chosen.made and progress:
        Console().say(summary(chosen))
    smaller = f"try a batch size of {batch_size // 2}" if batch_size > 1 else "use a machine with more"
    processes = Distribution.start(device)
    try:
        if isinstance(weights, Predictor):
            predictor = weights.with_options(**(settings or {}))
        else:
            predictor = load(weights, str(processes.device), precision, settings)
        require_known_classes(predictor.categories, chosen.categories)
        predictor = for_classes(predictor, chosen.categories)
        console, images = Console(progress and processes.leads), -(-len(chosen.records) // processes.world)
        with told(smaller), console.progress("measuring", images) as advance:
            found = predict_split(_uncalibrated(predictor), chosen, batch_size, workers, processes, advance)
        decided = found
        if _calibrated(predictor):
            console.say("measuring again with calibrated scores, for everything but AP")
            with told(smaller), console.progress("measuring", images) as advance:
                decided = predict_split(predictor, chosen, batch_size, workers, processes, advance)
    finally:
        processes.stop()
    results = of_classes(found.results, chosen.categories)
    metrics = evaluate_detections(chosen.records, chosen.categories, results, predictor.options.detections)
    by_score = results
    if decided is not found:
        by_score = of_classes(decided.results, chosen.categories)
        best = sweep(match(chosen.records, chosen.categories, by_score)).best.score
        metrics = replace(metrics, best_threshold=best)
    waited = found.waited / max(found.seconds, 1e-9)
    threshold = predictor.options.decision_threshold
    return Evaluation(metrics, results, by_score, chosen, threshold, waited, processes.leads)


def _calibrated(predictor: Predictor) -> bool:
    """Whether calibration changes the scores and can be turned off."""
    fitted = any(branch.calibrated for branch in predictor.inside.config.branches)
    return fitted and predictor.options.calibrated and not isinstance(predictor.inside, Exported)


def _uncalibrated(predictor: Predictor) -> Predictor:
    """The predictor without calibration, which AP is measured with: calibration can reorder proposals."""
    return predictor.with_options(calibrated=False) if _calibrated(predictor) else predictor


def for_classes(predictor: Predictor, categories: Categories) -> Predictor:
    """The predictor limited to these classes, so that others do not count towards an image's maximum of detections."""
    pairs, asked = predictor.categories.pairs, predictor.options.classes
    labels = [label for label, pair in enumerate(pairs, 1) if pair in categories.pairs]
    if len(labels) == len(pairs):
        return predictor
    return predictor.only(tuple(label for label in labels if asked is None or label in asked))


def measured_split(
    weights: WeightsLike | Predictor,
    data: str | Path | Any,
    split: str,
    shares: SplitConfig | None = None,
    classes: Sequence[str] | None = None,
) -> Split:
    """Read the split to evaluate. Data without splits is split as in the training of the (first) weights.

    Raises:
        DoubleheadError: data or split are invalid.
    """
    if is_own(data):
        one = not isinstance(data, Mapping)
        return own_split(split, data, classes).sound() if one else own_dataset(data, classes).read(split)
    dataset = open_dataset(data, shares)
    if dataset.whole and shares is None and not isinstance(weights, Predictor):
        first = weights if isinstance(weights, str | Path) else weights[0]
        trained = read_notes(Path(first)).get("split")
        if trained:
            dataset = open_dataset(data, SplitConfig.model_validate(trained))
    return dataset.read(split)


def of_classes(results: Sequence[dict[str, Any]], categories: Categories) -> list[dict[str, Any]]:
    """Filter results in COCO's format by class."""
    asked = set(categories.ids)
    return [result for result in results if result["category_id"] in asked]


def require_known_classes(model: Categories, data: Categories) -> None:
    """Reject data with classes that the model does not know.

    Raises:
        DoubleheadError: a pair of name and id is not among the model's.
    """
    unknown = [pair for pair in data.pairs if pair not in model.pairs]
    if unknown:
        raise DoubleheadError(
            f"the weights have the classes {some_classes(model.pairs)}, but lack {some_classes(unknown)} of the data: "
            "use weights trained on these classes, or give both the same names and ids"
        )
