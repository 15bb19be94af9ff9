"""Metric of the val split that selects the best weights and decides on early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from doublehead.common.errors import DoubleheadError
from doublehead.data.records import Split
from doublehead.evaluation.coco import Metrics

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LOSS = "loss"


@dataclass(frozen=True)
class Metric:
    """Metric selected by `train.metric`: a COCO metric, the validation loss, or the AP of a class."""

    name: str

    @classmethod
    def of(cls, name: str, split: Split) -> Metric:
        """Look up a metric by name for a split.

        Raises:
            DoubleheadError: the name is neither a metric nor a class of the split, or the class has no boxes there.
        """
        if name in FIGURES or name == LOSS:
            return cls(name)
        if name not in split.categories.names:
            known = ", ".join(("AP", "AP50", "AP75", LOSS, *split.categories.names))
            raise DoubleheadError(
                f"train.metric {name}: is neither a metric nor a class of the data; use one of {known}"
            )
        label = split.categories.names.index(name) + 1
        if not any((record.labels == label).any() for record in split.records):
            raise DoubleheadError(f"train.metric {name}: the {split.name} split has no box of this class")
        return cls(name)

    @property
    def title(self) -> str:
        """Display name: AP50, loss, "AP of WBC"."""
        return self.name if self.name in FIGURES or self.name == LOSS else f"AP of {self.name}"

    def value(self, metrics: Metrics, losses: Mapping[str, float]) -> float:
        """Read the metric from a validation; NaN without ground truth."""
        if self.name == LOSS:
            return losses[LOSS]
        if self.name in FIGURES:
            return metrics[self.name]
        return next(each.ap for each in metrics.classes if each.name == self.name)

    def improves(self, value: float, best: float) -> bool:
        """Whether a value is better than the best so far, which is negative if there is none.

        Without boxes in the val split, AP is undefined and the newest weights count as the best. A non-finite loss is
        never an improvement.
        """
        if not math.isfinite(value):
            return best < 0
        return best < 0 or (value < best if self.name == LOSS else value > best)
