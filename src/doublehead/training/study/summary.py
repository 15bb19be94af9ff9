"""Comparison of rows: mean and deviation over seeds, and paired differences to the baseline with intervals."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
from rich.table import Table
from torch import Tensor

from doublehead.common.console import Console
from doublehead.common.device import pick_device
from doublehead.common.errors import DoubleheadError
from doublehead.config import Config
from doublehead.data.images import read_image, to_tensor
from doublehead.data.records import Split
from doublehead.evaluation import plots
from doublehead.evaluation.bootstrap import Matches, draws, mean_known
from doublehead.evaluation.coco import USUAL
from doublehead.inference.predictor import Predictor
from doublehead.model.checkpoint import load_checkpoint
from doublehead.training.study.plan import StudyPlan, StudyRun
from doublehead.training.study.timing import alternate

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
DRAWS = 2000
LEVEL = 0.95
IOUS = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds."""
TIMED_IMAGES = 8
ROUNDS = 3


@dataclass(frozen=True)
class Difference:
    """Difference of AP to the baseline's, paired by seed and image, with its 95% interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, mean: float, drawn: np.ndarray) -> Difference:
        """From its value and that of each drawing."""
        low, high = np.nanpercentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        return cls(float(mean), float(low), float(high))

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


@dataclass(frozen=True)
class ClassFigure:
    """AP of one class or the mean of several, averaged over seeds, and its difference to the baseline."""

    ap: float
    difference: Difference | None  # None: the baseline itself

    def __str__(self) -> str:
        return f"{100 * self.ap:.1f}" + (f" ({self.difference})" if self.difference else "")


@dataclass(frozen=True)
class RowSummary:
    """A row. Figures in 0..1: mean and standard deviation over seeds (NaN with one seed)."""

    name: str
    seeds: int
    means: dict[str, float]
    deviations: dict[str, float]
    aps: list[float]  # of each seed
    by_iou: list[float]  # AP at each of COCO's thresholds
    difference: Difference | None  # None: the baseline itself
    differences: list[Difference]  # at each of COCO's thresholds; of the baseline: none
    drawn: np.ndarray  # (10, DRAWS): those differences, drawing by drawing
    classes: dict[str, ClassFigure]  # of the plan's classes, by name, and of their mean
    training_minutes: float | None  # of steps, median over seeds; None: not trained
    milliseconds: float | None  # per image, one at a time; None: the weights are not there


@dataclass(frozen=True)
class Summary:
    """All rows, and the data they were evaluated on."""

    NAME: ClassVar = "summary"

    baseline: str
    split: str
    images: int
    rows: list[RowSummary]

    def lines(self) -> list[list[str]]:
        """Header and cells in words, figures in per cent."""
        cells = [["", "seeds", *FIGURES, f"AP - {self.baseline}", "training, min", "inference, ms"]]
        for row in self.rows:
            figures = [_plus_minus(row.means[name], row.deviations[name]) for name in FIGURES]
            minutes = "" if row.training_minutes is None else f"{row.training_minutes:.1f}"
            milliseconds = "" if row.milliseconds is None else f"{row.milliseconds:.0f}"
            cells.append([row.name, f"{row.seeds}", *figures, str(row.difference or ""), minutes, milliseconds])
        return cells

    def table(self) -> Table:
        """For the console: what fits into 80 columns."""
        header, *rows = ([line[0], *line[2:4], line[8]] for line in self.lines())
        table = Table(*header, caption=self._title())
        for column in table.columns:
            column.no_wrap = True
        for row in rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """A table, with what it shows above it."""
        text = f"{self._title()}\n\n{_markdown(self.lines())}"
        classes = self.class_lines()
        return f"{text}\n{_markdown(classes)}" if classes else text

    def class_lines(self) -> list[list[str]]:
        """Header and cells for the plan's classes: AP in per cent and the difference; none where it names none."""
        if not self.rows[0].classes:
            return []
        header = [f"AP, and AP - {self.baseline}", *self.rows[0].classes]
        return [header, *([row.name, *map(str, row.classes.values())] for row in self.rows)]

    def _title(self) -> str:
        return (
            f"{self.images} images of `{self.split}`; in %, mean and standard deviation over seeds; differences with "
            f"{LEVEL:.0%} intervals over images and seeds"
        )

    def save(self, folder: Path) -> None:
        """Write summary.md and summary.csv, and classes.csv where the plan names classes."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.md").write_text(self.markdown(), encoding="utf-8")
        with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(self._values())
        if self.rows[0].classes:
            with (folder / "classes.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self._class_values())

    def draw(self, folder: Path) -> None:
        """Draw summary.png, AP of every seed and the differences, and by_iou.png, the same against the IoU threshold.

        Raises:
            DoubleheadError: matplotlib is not installed.
        """
        names = [row.name for row in self.rows]
        differences = [astuple(row.difference) if row.difference else None for row in self.rows]
        plots.compared(names, [row.aps for row in self.rows], differences, self.baseline, folder / "summary.png")
        by_iou = {row.name: (row.by_iou, row.differences) for row in self.rows}
        draw_by_iou(by_iou, self.baseline, folder / "by_iou.png")

    def _class_values(self) -> list[list[Any]]:
        lines: list[list[Any]] = [["row", "class", "AP", "difference", "low", "high"]]
        for row in self.rows:
            for name, figure in row.classes.items():
                paired = astuple(figure.difference) if figure.difference else ("", "", "")
                lines.append([row.name, name, figure.ap, *paired])
        return lines

    def _values(self) -> list[list[Any]]:
        both = [f"{name}{suffix}" for name in FIGURES for suffix in ("", "_deviation")]
        at_iou = [
            f"{figure}_at_{threshold:.2f}" for threshold in IOUS for figure in ("AP", "difference", "low", "high")
        ]
        header = ["row", "seeds", *both, "difference", "low", "high", "training_minutes", "milliseconds", *at_iou]
        lines: list[list[Any]] = [header]
        for row in self.rows:
            figures = [value for name in FIGURES for value in (row.means[name], row.deviations[name])]
            d = row.difference
            paired = [d.mean, d.low, d.high] if d else ["", "", ""]
            at = [
                value
                for place, ap in enumerate(row.by_iou)
                for value in (ap, *(astuple(row.differences[place]) if d else ("", "", "")))
            ]
            lines.append([row.name, row.seeds, *figures, *paired, row.training_minutes, row.milliseconds, *at])
        return lines


def draw_by_iou(rows: Mapping[str, tuple[list[float], list[Difference]]], baseline: str, path: Path) -> None:
    """Draw AP and differences at each of COCO's thresholds, by the names of rows; the baseline has no differences."""
    differences = [[astuple(d) for d in differences] for _, differences in rows.values()]
    plots.by_iou(list(rows), [ap for ap, _ in rows.values()], differences, baseline, path)


def summarise(plan: StudyPlan, runs: Sequence[StudyRun], split: Split) -> Summary:
    """Compare finished runs.

    The interval of a difference comes from drawing, with replacement, the images that are measured and the seeds,
    both at once, and the same images for both models.

    Raises:
        DoubleheadError: detections of a run do not belong to the split.
    """
    results = {run: json.loads(run.result.read_text(encoding="utf-8")) for run in runs}
    milliseconds = _inference_times(plan, runs, results, split)
    rng = np.random.default_rng(0)
    images = len(split.records)
    weights = np.concatenate([np.ones((1, images), np.uint8), draws(images, DRAWS, rng)])  # first: all, once
    places = rng.integers(len(plan.seeds), size=(DRAWS, len(plan.seeds)))
    measured: dict[str, list[np.ndarray]] = {}  # AP of each seed, (10, 1 + DRAWS)
    labels = [split.categories.names.index(name) for name in plan.classes]
    of_classes: dict[str, list[np.ndarray]] = {}  # AP of each seed, (1 + classes, 1 + DRAWS), the mean first
    with Console().progress("comparing", len(runs)) as advance:
        for run in runs:  # seed by seed
            found = json.loads((run.folder / plan.split / "predictions.json").read_text(encoding="utf-8"))
            most = results[run].get("max_detections", USUAL)
            matches = Matches(split.records, split.categories, found, most)
            by_class = matches.by_class(weights)
            measured.setdefault(run.row, []).append(mean_known(by_class))
            if labels:
                chosen = by_class[labels].mean(1)
                of_classes.setdefault(run.row, []).append(np.concatenate([mean_known(chosen)[None], chosen]))
            advance()

    def paired(found: Mapping[str, list[np.ndarray]], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Of figures (N, 1 + DRAWS) of each seed: a row's less the baseline's, (N,), and by drawing, (N, DRAWS)."""
        apart = np.stack(found[name], -1) - np.stack(found[plan.baseline], -1)
        return apart[:, 0].mean(1), np.take_along_axis(apart[:, 1:], places[None], axis=2).mean(2)

    def classes(name: str) -> dict[str, ClassFigure]:
        if not labels:
            return {}
        aps = np.stack(of_classes[name], -1)[:, 0].mean(1)
        return {
            title: ClassFigure(float(ap), Difference.of(exact, drawn) if name != plan.baseline else None)
            for title, ap, exact, drawn in zip(
                ("their mean", *plan.classes), aps, *paired(of_classes, name), strict=True
            )
        }

    def row(name: str) -> RowSummary:
        own = [result for run, result in results.items() if run.row == name]
        figures = {figure: [_number(result["metrics"][figure]) for result in own] for figure in FIGURES}
        aps = np.stack(measured[name], -1)  # (10, 1 + DRAWS, seeds)
        exact, drawn = paired(measured, name)
        compared = name != plan.baseline
        minutes = [result["training_seconds"] / 60 for result in own if result["training_seconds"] is not None]
        return RowSummary(
            name,
            len(own),
            {figure: float(np.mean(values)) for figure, values in figures.items()},
            {figure: float(np.std(v, ddof=1)) if len(v) > 1 else math.nan for figure, v in figures.items()},
            figures["AP"],
            aps[:, 0].mean(1).tolist(),
            Difference.of(exact.mean(), drawn.mean(0)) if compared else None,
            [Difference.of(*at) for at in zip(exact, drawn, strict=True)] if compared else [],
            drawn,
            classes(name),
            median(minutes) if minutes else None,
            milliseconds.get(name),
        )

    return Summary(plan.baseline, plan.split, len(split.records), [row(name) for name in plan.rows])


def _inference_times(
    plan: StudyPlan, runs: Sequence[StudyRun], results: dict[StudyRun, dict[str, Any]], split: Split
) -> dict[str, float]:
    """Milliseconds per image of each row's first seed, one image at a time; the rows take turns.

    Rows whose weights are not there, as where only results were kept, are left out.
    """
    images = [to_tensor(read_image(record.path, record.encoded())) for record in split.records[:TIMED_IMAGES]]
    if not images:
        raise DoubleheadError(f"split `{split.name}` holds no images")
    calls, device = {}, pick_device("cpu")
    for run in runs:
        weights = run.folder / results[run]["weights"]
        if run.seed == plan.seeds[0] and weights.exists():
            config = Config.model_validate(results[run]["config"])
            device = pick_device(config.train.device)
            checkpoint = replace(load_checkpoint(weights), config=config.model)
            predictor = Predictor(checkpoint.build(), checkpoint.categories, device)
            calls[run.row] = partial(_one_by_one, predictor, images)
    with Console().progress("timing", (ROUNDS + 2) * len(calls)) as advance:
        seconds = alternate(calls, ROUNDS, device, advance)
    return {name: 1000 * median(times) / len(images) for name, times in seconds.items()}


def _one_by_one(predictor: Predictor, images: list[Tensor]) -> None:
    for image in images:
        predictor.detect([image])


def _number(value: float | None) -> float:
    """JSON has no NaN."""
    return math.nan if value is None else value


def _markdown(lines: list[list[str]]) -> str:
    header, *rows = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *rows])


def _plus_minus(value: float, deviation: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:.1f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.1f}")
