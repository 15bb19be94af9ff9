"""A model measured on the val split during training: COCO's figures, and losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from doublehead.common.distribution import Distribution
from doublehead.config import Config
from doublehead.data.records import Split
from doublehead.evaluation.coco import Metrics, evaluate_detections
from doublehead.evaluation.evaluate import predict_split
from doublehead.evaluation.losses import SplitLosses
from doublehead.inference.predictor import Predictor
from doublehead.training.metric import FIGURES, LOSS, Metric

BATCH = 4
"""Images at once, whatever the run's batch: padding has a part in the last digits, which shall not depend on it."""


@dataclass(frozen=True)
class Measured:
    """What a validation found."""

    metrics: Metrics
    losses: dict[str, float]  # the whole as `loss`, then its parts; empty: not measured
    value: float  # of `train.metric`

    def row(self, metric: Metric) -> dict[str, float]:
        """All figures by name, as recorders get them."""
        own = {} if metric.name in (*FIGURES, LOSS) else {metric.title: self.value}
        return self.metrics.totals | own | self.losses


def validate(
    predictor: Predictor,
    split: Split,
    config: Config,
    metric: Metric,
    processes: Distribution,
    progress: Callable[[int], object],
) -> Measured:
    """Measure a model on a split whose batches the processes share; all of them get the same figures.

    Args:
        predictor: the model.
        split: what to measure on.
        config: of the run.
        metric: what decides which weights are the best.
        processes: this process among those of the run.
        progress: called with how many images this process has done.
    """
    losses = SplitLosses() if config.train.validation_loss else None
    data = config.data
    found = predict_split(predictor, split, BATCH, data.workers, processes, progress, data.timeout, losses)
    metrics = evaluate_detections(split.records, split.categories, found.results, config.model.roi.detections)
    mean = losses.mean(processes) if losses else {}
    return Measured(metrics, mean, metric.value(metrics, mean))
