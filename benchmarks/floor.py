"""What a floor under the first branch's scores spares a model whose scores are fused, and what AP it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from torch import Tensor

from doublehead.common.console import Console
from doublehead.common.device import pick_device
from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.evaluation.evaluate import evaluate
from doublehead.inference.detections import Detections
from doublehead.inference.predictor import Predictor
from doublehead.model.checkpoint import load_model
from doublehead.model.interop.published import resolve

FLOORS = (0.0, 0.001, 0.01, 0.03, 0.05, 0.07, 0.1, 0.2)


class _Timed(Predictor):
    """Notes how long it has been detecting."""

    spent: list[float]

    def detect(self, images: list[Tensor]) -> list[Detections]:
        began = time.perf_counter()
        result = super().detect(images)
        self.spent.append(time.perf_counter() - began)
        return result


def floor(
    weights: str | Path,
    data: str | Path,
    split: str = "val",
    floors: Sequence[float] = FLOORS,
    repeats: int = 3,
    device: str = "auto",
    precision: str = "fp32",
) -> list[dict[str, Any]]:
    """AP and time of a trained model at several values of `roi.score_floor`; the floors take turns, round by round.

    Args:
        weights: a checkpoint, or a published name.
        data: the dataset's folder or YAML.
        split: which of its splits.
        floors: the values; the first is what the others are compared with.
        repeats: rounds.
        device: where to compute.
        precision: as of `load`.

    Returns:
        Per floor `floor`, `ap`, `seconds` (median of detecting in the whole split), `ratio` to the first floor, `seen`
        (proposals that the later branches see, as a share).

    Raises:
        DoubleheadError: weights, data or split have a mistake, or the model fuses no scores.
    """
    model, checkpoint = load_model(resolve(weights))
    predictor = _Timed(model, checkpoint.categories, pick_device(device), precision)
    predictor.spent = spent = list[float]()
    head = predictor.model.roi_heads.last
    scoring = head.score_branches(predictor.options)
    if len(scoring) < 2:
        raise DoubleheadError(f"{weights}: scores of one branch only, so that there is nothing for a floor to spare")
    images = len(open_dataset(data).read(split).records)
    first, second = (list(head)[i] for i in scoring[:2])
    counts = {first: 0, second: 0}
    for branch in counts:
        branch.register_forward_hook(lambda module, given, _: counts.update({module: counts[module] + len(given[0])}))
    times: dict[float, list[float]] = {value: [] for value in floors}
    found: dict[float, dict[str, Any]] = {}
    with Console().progress("measuring", images * repeats * len(times)) as advance:
        for _ in range(repeats):
            for value in times:
                spent.clear()
                counts[first] = counts[second] = 0
                ap = evaluate(predictor.with_options(score_floor=value), data, split).metrics["AP"]
                times[value].append(sum(spent))
                found[value] = {"floor": value, "ap": ap, "seen": counts[second] / max(counts[first], 1)}
                advance(images)
    base = times[floors[0]]
    return [
        {
            **found[value],
            "seconds": median(own),
            "ratio": median(mine / first for mine, first in zip(own, base, strict=True)),
        }
        for value, own in times.items()
    ]


def table(results: list[dict[str, Any]]) -> Table:
    """A row for each floor."""
    shown = Table("floor", "AP", "seconds", "ratio", "proposals seen by both")
    for row in results:
        shown.add_row(
            f"{row['floor']:g}",
            f"{row['ap']:.4f}",
            f"{row['seconds']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['seen']:.1%}",
        )
    return shown
