"""The report of `evaluate`: index.html, which carries everything it shows, and the same numbers as JSON and CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from doublehead.common.errors import DoubleheadError, require
from doublehead.common.files import free_name
from doublehead.common.pages.pages import render
from doublehead.common.plain import plain
from doublehead.evaluation import plots
from doublehead.evaluation.evaluate import Evaluation
from doublehead.evaluation.report import figures, tables, words
from doublehead.evaluation.report.measured import FIGURES, Measured, difference, measured
from doublehead.evaluation.report.pictures import CROPS, OF_CELL, WORST, Crop, crops, worst

PAGE = "index.html"

CLASSES = 30
"""Rows of the confusion matrix on the page: the classes with most confusions. confusion.csv has all."""

PAIRS = 12
"""The commonest confusions, in a list."""


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix."""

    count: int
    share: float  # of its row
    right: bool
    anchor: str  # of its crops; empty where there are none
    words: str


def write_report(evaluations: Sequence[Evaluation], names: Sequence[str], folder: str | Path) -> list[str]:
    """Write the report of one model into a folder, or of several into folders of their names, and compare them.

    Args:
        evaluations: of one or more models, on the same split.
        names: of the models.
        folder: where to; made where it is missing.

    Returns:
        What was left out and why, a sentence each.

    Raises:
        DoubleheadError: the models were measured on other images, or an image can no longer be read.
    """
    folder = Path(folder)
    if len(evaluations) == 1:
        return _write_one(measured(evaluations[0], names[0]), folder, None)
    taken: set[str] = set()
    folders = [folder / free_name(name, taken) for name in names]
    models = [measured(evaluation, path.name) for evaluation, path in zip(evaluations, folders, strict=True)]
    said = [line for one, path in zip(models, folders, strict=True) for line in _write_one(one, path, f"../{PAGE}")]
    rows = comparison_rows(models)
    (folder / "comparison.json").write_text(json.dumps(plain(rows), indent=1), encoding="utf-8")
    tables.write_csv(folder / "comparison.csv", rows)
    drawn = _charts(lambda: [figures.compared_precision_recall(models), figures.compared_f1(models)])
    page = render(
        "evaluation/report/comparison.html",
        models=models,
        links=[f"{path.name}/{PAGE}" for path in folders],
        found=words.compared(models),
        rows=rows,
        classes=[[one.evaluation.metrics.classes[k].ap for one in models] for k in range(len(models[0].classes))],
        charts=[] if drawn is None else list(zip(drawn, ("Precision against recall", "F1 against score"), strict=True)),
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return list(dict.fromkeys(said))


def comparison_rows(models: Sequence[Measured]) -> list[tables.Row]:
    """A row for each model: its figures, and by how much each passes the first model's, with intervals."""
    rows = []
    for one in models:
        row: tables.Row = {"model": one.name}
        for name in FIGURES:
            low, high = one.intervals[name]
            gain, gain_low, gain_high = difference(one, models[0], name)
            row |= {name: one.evaluation.metrics[name], f"{name}_low": low, f"{name}_high": high}
            row |= {f"{name}_gain": gain, f"{name}_gain_low": gain_low, f"{name}_gain_high": gain_high}
        row |= {"threshold": one.best.score, "precision": one.best.precision, "recall": one.best.recall}
        rows.append(row | {"f1": one.best.f1, "calibration_error": one.reliability.error})
    return rows


def page(one: Measured, above: str | None = None) -> str:
    """The page of one model as HTML.

    Args:
        one: the model.
        above: the page that compares it with others.

    Raises:
        DoubleheadError: matplotlib is missing, or an image can no longer be read.
    """
    pictures = crops(one.matched, one.confusion)
    shown, cells = matrix(one, pictures)
    drawn = _charts(lambda: _figures(one))
    names = (*one.matched.categories.names, tables.BACKGROUND)
    return render(
        "evaluation/report/page.html",
        one=one,
        metrics=one.evaluation.metrics,
        split=one.evaluation.split,
        above=above,
        found=words.found(one),
        rows=tables.class_rows(one),
        figures=drawn,
        names=names,
        shown=shown,
        cells=cells,
        left_out=len(names) - len(shown),
        confused=words.confused(one)[:PAIRS],
        crops=[(_anchor(*cell), _meaning(one, *cell), pictures[cell], _total(one, cell)) for cell in sorted(pictures)],
        cropped=(sum(map(len, pictures.values())), CROPS, OF_CELL),
        worst=worst(one.matched, one.cut.score),
        most_worst=WORST,
        sweep=json.dumps(plain(_sweep(one))),
        number=_number,
    )


def matrix(one: Measured, pictures: dict[tuple[int, int], list[Crop]]) -> tuple[list[int], list[list[Cell]]]:
    """The classes shown, background among them, and their rows of cells."""
    counts = one.confusion.matrix
    classes = len(counts) - 1
    wrong = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
    most = np.argsort(-wrong[:classes], kind="stable")[:CLASSES]
    shown = [*sorted(most.tolist()), classes]
    sums = np.maximum(counts.sum(1), 1)
    return shown, [
        [
            Cell(
                int(counts[row, column]),
                float(counts[row, column] / sums[row]),
                row == column,
                _anchor(row, column) if (row, column) in pictures else "",
                _meaning(one, row, column),
            )
            for column in shown
        ]
        for row in shown
    ]


def _write_one(one: Measured, folder: Path, above: str | None) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    one.evaluation.save(folder)
    tables.write_tables(one, folder)
    said = []
    try:
        plots.precision_recall(one.evaluation.metrics, folder / "precision_recall.png")
    except DoubleheadError as error:
        said.append(f"no curves drawn: {error}")
    (folder / PAGE).write_text(page(one, above), encoding="utf-8", errors="replace")
    return said


def _figures(one: Measured) -> dict[str, list[tuple[str, str]]]:
    """By section, figures as data URI and what they show in words."""
    calibration = [(figures.reliability_diagram("scores", one.reliability), "Share of right detections against score")]
    if one.uncalibrated:
        before = figures.reliability_diagram("before calibration", one.uncalibrated)
        calibration.append((before, "The same before calibration"))
    return {
        "curves": [(figures.precision_recall(one), "Precision against recall at IoU 0.5 and 0.75")],
        "thresholds": [
            (figures.thresholds(one), "Precision, recall and F1 against score"),
            (figures.f1_by_class(one), "F1 against score by class"),
        ],
        "calibration": calibration,
    }


def _charts(draw):  # type: ignore[no-untyped-def]
    """What is drawn, or None without matplotlib."""
    try:
        require("matplotlib", "plots")
    except DoubleheadError:
        return None
    return draw()


def _sweep(one: Measured) -> dict[str, list[float]]:
    cuts = [one.sweep.at(score) for score in figures.GRID]
    return {name: [getattr(cut, name) for cut in cuts] for name in ("precision", "recall", "f1")}


def _anchor(row: int, column: int) -> str:
    return f"cell-{row}-{column}"


def _total(one: Measured, cell: tuple[int, int]) -> int:
    return int(one.confusion.matrix[cell])


def _meaning(one: Measured, row: int, column: int) -> str:
    names, classes = one.matched.categories.names, len(one.matched.categories)
    if column == classes:
        return f"{names[row]} missed" if row < classes else ""
    if row == classes:
        return f"background detected as {names[column]}"
    return f"{names[row]} found" if row == column else f"{names[row]} detected as {names[column]}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
