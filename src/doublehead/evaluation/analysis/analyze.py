"""The complete analysis: curves, correlations and kinds of errors of models on a split."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from doublehead.common.console import Console
from doublehead.common.errors import require
from doublehead.data.loader import default_workers, evaluation_loader
from doublehead.data.records import Split
from doublehead.evaluation.analysis.heads import model_names
from doublehead.evaluation.analysis.look import Look, ModelAnalysis
from doublehead.evaluation.analysis.proposals import Object, choose
from doublehead.evaluation.analysis.report import write_report
from doublehead.evaluation.analysis.result import Analysis
from doublehead.evaluation.budget import QUICK, Budget
from doublehead.evaluation.evaluate import for_classes, measured_split, require_known_classes
from doublehead.inference.predictor import Predictor, load


def analyze(
    weights: str | Path | Sequence[str | Path],
    data: str | Path,
    split: str = "val",
    output: str | Path | None = None,
    budget: Budget = QUICK,
    batch_size: int = 4,
    workers: int | None = None,
    device: str = "auto",
    progress: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Analysis:
    """Analyse where models lose AP, in classification or localisation, and how their heads differ (paper, section 3).

    Args:
        weights: one or more checkpoints or published names.
        data: dataset folder or YAML. Classes of a model that the dataset lacks are ignored.
        split: name of the split.
        output: folder for the report; None: no report.
        budget: numbers of images, objects and windows; QUICK, or FULL with the paper's numbers.
        batch_size: images per forward pass.
        workers: processes that decode images; None: chosen by the number of CPU cores.
        device: auto, cpu, cuda or a card such as cuda:1.
        progress: whether to show a progress bar.
        settings: inference options by name; see `config.InferenceOptions`.

    Raises:
        DoubleheadError: weights, data or split are invalid, the data has classes unknown to a model, the split has no
            objects, or a report is requested and matplotlib is not installed.
    """
    if output is not None:
        require("matplotlib", "plots")
    began = time.monotonic()
    paths = [str(w) for w in ([weights] if isinstance(weights, str | Path) else weights)]
    found = measured_split(paths[0], data, split)
    predictors = [load(path, device, settings=settings) for path in paths]
    for predictor in predictors:
        _ = predictor.model  # refuses what cannot be looked into
        require_known_classes(predictor.categories, found.categories)
    if "calibrated" not in (settings or {}):  # curves of scores are of the heads as trained
        predictors = [predictor.with_options(calibrated=False) for predictor in predictors]
    predictors = [for_classes(predictor, found.categories) for predictor in predictors]
    records, objects = choose(found.records, budget)
    names = model_names(paths)
    chosen = replace(found, records=records)
    with Console(progress).progress("analysing", len(paths) * (len(records) + len(objects))) as advance:

        def look_at(predictor: Predictor, name: str, path: str) -> ModelAnalysis:
            look = Look(predictor, name, path, found.categories, budget.windows)
            _show(look, chosen, objects, batch_size, default_workers() if workers is None else workers, advance)
            return look.result()

        models = [look_at(*each) for each in zip(predictors, names, paths, strict=True)]
    windows = models[0].scores[0].bins["all"].count.sum() / len(objects)
    elapsed = time.monotonic() - began
    result = Analysis(
        models, str(data), found.name, found.categories, len(records), objects, float(windows), budget, elapsed
    )
    if output is not None:
        write_report(result, Path(output))
    return result


def _show(
    look: Look, split: Split, objects: list[Object], batch_size: int, workers: int, advance: Callable[..., None]
) -> None:
    """Run a model on all images and on the windows around their objects."""
    by_image: dict[int, list[Object]] = defaultdict(list)
    for each in objects:
        by_image[each.image_id].append(each)
    for images, records in evaluation_loader(split, batch_size, workers):
        with look.predictor.autocast():
            stage = look.model.first_stage(images, look.options)
            look.detect(stage, records)
            for place, record in enumerate(records):
                look.ask(stage, place, by_image[record.image_id])
                advance(1 + len(by_image[record.image_id]))
