"""The figure of the val split that decides which weights are the best, and when a run stops early."""

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
    """What `train.metric` names: one of COCO's figures, the validation loss, or the AP of a class."""

    name: str

    @classmethod
    def of(cls, name: str, split: Split) -> Metric:
        """The metric of that name on a split.

        Raises:
            DoubleheadError: it is no figure and no class of the split, or the class has no boxes there.
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
        """What people read: AP50, loss, "AP of WBC"."""
        return self.name if self.name in FIGURES or self.name == LOSS else f"AP of {self.name}"

    def value(self, metrics: Metrics, losses: Mapping[str, float]) -> float:
        """Read the metric from a measurement; NaN without anything to measure against."""
        if self.name == LOSS:
            return losses[LOSS]
        if self.name in FIGURES:
            return metrics[self.name]
        return next(each.ap for each in metrics.classes if each.name == self.name)

    def improves(self, value: float, best: float) -> bool:
        """Whether a value is better than the best so far, which is below 0 if there is none.

        Without boxes in the val split there is no AP, and the newest weights count as the best. A loss that is not
        finite improves nothing.
        """
        if not math.isfinite(value):
            return best < 0
        return best < 0 or (value < best if self.name == LOSS else value > best)
