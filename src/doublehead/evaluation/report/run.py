"""`doublehead evaluate`: measure each model, write the report, and say what came of it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from doublehead.evaluation.analysis.heads import model_names
from doublehead.evaluation.evaluate import Evaluation, evaluate
from doublehead.evaluation.report.report import PAGE, write_report
from doublehead.inference.exported import is_exported


@dataclass(frozen=True)
class Reported:
    """What to show at the console."""

    tables: list[Table]
    words: list[str]


def report(
    weights: Sequence[str | list[str]],
    data: str,
    split: str = "val",
    output: Path | None = None,
    batch_size: int = 4,
    device: str = "auto",
    precision: str = "fp32",
    settings: Mapping[str, Any] | None = None,
) -> Reported | None:
    """Measure one or more models with a progress bar, and write the report.

    Args:
        weights: checkpoints, published names or exported files; a list of them is an ensemble.
        data: the dataset's folder or YAML.
        split: which of its splits.
        output: folder for the report; None: one beside the first weights, or of an ensemble in the working folder.
        batch_size: images that go through a model at once.
        device: where to compute.
        precision: as of `load`.
        settings: inference options by their names; see `config.InferenceOptions`.

    Returns:
        What to show; None in other processes than the first.

    Raises:
        DoubleheadError: weights, data or split have a mistake.
    """
    found = [
        evaluate(one, data, split, batch_size, device=device, progress=True, precision=precision, settings=settings)
        for one in weights
    ]
    if not all(each.leads for each in found):
        return None
    output = output or _folder(weights, split)
    words = write_report(found, _names(weights), output)
    waited = sum(each.waited for each in found) / len(found)
    words += [line for path, each in zip(weights, found, strict=True) for line in _advice(path, each)]
    words.append(f"{waited:.0%} of the time went into waiting for images; everything is in {output}")
    words.append(f"the report is {output / PAGE}")
    tables = [table for each in found for table in (each.metrics.table(), each.metrics.totals_table())]
    return Reported(tables, words)


def _names(weights: Sequence[str | list[str]]) -> list[str]:
    """A short name for each model; an ensemble has those of its members."""
    alone = iter(model_names([one for one in weights if isinstance(one, str)]))
    return [next(alone) if isinstance(one, str) else " + ".join(model_names(one)) for one in weights]


def _folder(weights: Sequence[str | list[str]], split: str) -> Path:
    """Where the report goes if nothing is said."""
    first = weights[0]
    if isinstance(first, list):
        return Path(f"ensemble-{split}")
    kind = "evaluation" if len(weights) == 1 else "comparison"
    return Path(first).parent / f"{kind}-{split}"


def _advice(path: str | list[str], found: Evaluation) -> list[str]:
    """How the weights would get a decision threshold, where they have none."""
    best = found.metrics.best_threshold
    if isinstance(path, list):
        return []
    if found.threshold is not None or math.isnan(best) or is_exported(Path(path)) or not Path(path).is_file():
        return []
    new = Path(path).with_stem(f"{Path(path).stem}-threshold")
    words = ["doublehead", "convert", path, str(new), "--set", f"model.roi.decision_threshold={best:.4g}"]
    return [f"best threshold {best:.2f}; write it into a copy of the weights with: {shlex.join(words)}"]
