"""Ensembles: detectors of the same classes, with detections fused by weighted box fusion."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError
from doublehead.config import inference_options, option_names
from doublehead.inference.fusion import Found, fuse_opinions
from doublehead.inference.predictor import Predictor, load
from doublehead.model.detector import Detector


class Ensemble(Predictor):
    """A Predictor that combines several. Options apply to each member and default to its own; labels are the first's.

    Args:
        members: names, for messages, and predictors.
        model_weights: weights of the members in the fusion; None: equal.

    Raises:
        DoubleheadError: the class names of members differ, or the number of weights is not that of members.
    """

    def __init__(self, members: Sequence[tuple[str, Predictor]], model_weights: Sequence[float] | None = None) -> None:
        self.members = tuple(member for _, member in members)
        first = self.members[0]
        self.categories, self.device, self.precision = first.categories, first.device, first.precision
        self.inside, self.options = first.inside, first.options
        self.labels = [_labels_in(first.categories, one.categories, name) for name, one in members]
        self._weigh(model_weights)

    def with_options(self, **settings: Any) -> Ensemble:
        """As `Predictor.with_options`, for each member; `model_weights` has one value per member."""
        given = option_names(settings)
        weights = given.pop("model_weights", self.options.model_weights)
        result = self._of([member.with_options(**given) for member in self.members])
        result._weigh(weights)
        return result

    def only(self, labels: tuple[int, ...]) -> Ensemble:
        """As `Predictor.only`, with the labels of the first member."""
        wanted = torch.tensor(labels)
        own = [torch.where(torch.isin(known, wanted))[0].tolist() for known in self.labels]
        return self._of([member.only(tuple(kept)) for member, kept in zip(self.members, own, strict=True)])

    @property
    def model(self) -> Detector:
        """Not available: an ensemble cannot be inspected.

        Raises:
            DoubleheadError: always.
        """
        raise DoubleheadError("an ensemble cannot be inspected; give one model")

    def found(self, images: list[Tensor]) -> list[Found]:
        """As `Predictor.found`, with the members' detections fused."""
        opinions = [
            [one | {"labels": labels[one["labels"].cpu()]} for one in member.found(images)]
            for member, labels in zip(self.members, self.labels, strict=True)
        ]
        return [fuse_opinions(each, self.options, self.options.model_weights) for each in zip(*opinions, strict=True)]

    def _of(self, members: Sequence[Predictor]) -> Ensemble:
        result = copy.copy(self)
        result.members = tuple(members)
        result.options = members[0].options.model_copy(update={"model_weights": self.options.model_weights})
        return result

    def _weigh(self, weights: Sequence[float] | None) -> None:
        weights = inference_options(self.inside.config, {"model_weights": weights}).model_weights
        if weights is not None and len(weights) != len(self.members):
            raise DoubleheadError(f"model_weights: give one for each of the {len(self.members)} models")
        self.options = self.options.model_copy(update={"model_weights": weights})


def load_ensemble(
    weights: Sequence[str | Path],
    device: str = "auto",
    precision: str = "fp32",
    settings: Mapping[str, Any] | None = None,
) -> Predictor:
    """Load several detectors as an ensemble, or one as a plain Predictor.

    Args:
        weights: one path or name per detector, as in `load`.
        device: device of all detectors.
        precision: precision of all detectors.
        settings: inference options of all detectors, by name; `model_weights` has one value per detector.

    Raises:
        DoubleheadError: as in `load`; or the class names differ.
    """
    given = option_names(settings or {})
    if len(weights) < 2:
        if not weights:
            raise DoubleheadError("no weights were given")
        return load(weights[0], device, precision, given)
    shares = given.pop("model_weights", None)
    return Ensemble([(str(one), load(one, device, precision, given)) for one in weights], shares)


def _labels_in(first: Categories, other: Categories, name: str) -> Tensor:
    """Map each label of another model to the first model's label of the same name; 0 stays 0.

    Raises:
        DoubleheadError: the class names differ.
    """
    ours, theirs = (sorted(range(len(c)), key=c.names.__getitem__) for c in (first, other))
    if sorted(first.names) != sorted(other.names):
        differing = sorted(set(first.names) ^ set(other.names)) or sorted(other.names)
        raise DoubleheadError(
            f"{name}: has other classes than the first model of the ensemble (`{differing[0]}`); use models with the "
            "same class names"
        )
    labels = torch.zeros(len(other) + 1, dtype=torch.int64)
    labels[torch.tensor(theirs) + 1] = torch.tensor(ours) + 1
    return labels
