"""Class weights in the classification loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from doublehead.common.errors import DoubleheadError
from doublehead.data.records import Split


def class_weights(weights: Mapping[str, float] | str, split: Split) -> Tensor:
    """Compute weights (C + 1,), background first with weight 1.

    Args:
        weights: weights by class name, others 1; or `balanced`: inversely proportional to the number of boxes, with a
            mean of 1 over all boxes. A class without boxes is weighted like one with a single box.
        split: training split.

    Raises:
        DoubleheadError: a name is not a class of the data.
    """
    names = split.categories.names
    if isinstance(weights, str):
        labels = np.concatenate([record.training_boxes()[1] for record in split.records])
        counts = torch.from_numpy(np.bincount(labels, minlength=len(names) + 1)[1:]).clamp(min=1)
        return torch.cat([torch.ones(1), counts.sum() / (len(counts) * counts)])
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise DoubleheadError(
            f"train.class_weights: the data has no class `{unknown[0]}`; its classes are {', '.join(names)}"
        )
    return torch.tensor([1.0, *(weights.get(name, 1.0) for name in names)])
