"""Pictures of a finished run: training curves, and predictions next to the ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError
from doublehead.data.check import read_record
from doublehead.data.records import Split
from doublehead.evaluation.plots import training_curves, truth_and_predictions
from doublehead.inference.predictor import Predictor
from doublehead.training.run import RunFolder

ROWS = 8


def draw_run(run: RunFolder, split: Split, predictor: Predictor, console: Console) -> list[Path]:
    """Draw curves.png, if matplotlib is installed, and predictions.jpg. Returns the files drawn."""
    drawn = []
    try:
        drawn.append(training_curves(run.training, run.validation, run.curves))
    except DoubleheadError as error:
        console.say(f"no curves drawn: {error}")
    return [*drawn, draw_predictions(split, predictor, run.pictures)]


def draw_predictions(split: Split, predictor: Predictor, path: Path) -> Path:
    """Draw ground truth and predictions side by side, for images spread evenly over a split."""
    places = np.unique(np.linspace(0, len(split.records) - 1, ROWS).round().astype(int))
    pairs = []
    for record in (split.records[place] for place in places):
        detections = predictor.predict(read_record(record))
        assert detections.image is not None
        pairs.append((detections.image, *record.training_boxes(), detections))
    return truth_and_predictions(pairs, path)
