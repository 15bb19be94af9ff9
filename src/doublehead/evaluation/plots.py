"""Plots of training and evaluation: curves with matplotlib, contact sheets with PIL alone."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from doublehead.common.errors import DoubleheadError, require
from doublehead.common.pages.pages import data_uri
from doublehead.evaluation.coco import RECALLS, Metrics
from doublehead.inference.detections import Detections, class_colour, draw_boxes, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 12
"""Maximum classes with lines of their own; more could not be distinguished."""

FAN: dict[str, Any] = {"color": "0.75", "lw": 0.7, "rasterized": True}
"""Style of the lines of more classes: rasterised, so that the file size does not depend on their number."""


def precision_recall(metrics: Metrics, path: str | Path) -> Path:
    """Plot precision-recall curves at IoU 0.5 and 0.75 to a file (.png, .svg, .pdf ...). Returns the path.

    Raises:
        DoubleheadError: matplotlib is not installed, or the file extension is not supported.
    """
    return _write(precision_recall_figure(metrics), path)


def precision_recall_figure(metrics: Metrics) -> Figure:
    """Create a figure of precision-recall curves at IoU 0.5 and 0.75.

    Up to 12 classes have one line each. More are drawn as grey lines behind their mean.

    Raises:
        DoubleheadError: matplotlib is not installed.
    """
    figure = new_figure(11, 4.8)
    panels = figure.subplots(1, 2, sharey=True)
    measured = [(k, c) for k, c in enumerate(metrics.classes, 1) if not math.isnan(c.ap)]
    few = len(measured) <= MANY
    for axes, iou, total in zip(panels, ("0.5", "0.75"), ("AP50", "AP75"), strict=True):
        curves = [(c.curve50 if iou == "0.5" else c.curve75).precision for _, c in measured]
        for (label, c), precision in zip(measured, curves, strict=True):
            ap = c.ap50 if iou == "0.5" else c.ap75
            style = {"color": line_colour(label), "lw": 2, "label": f"{c.name}  {100 * ap:.1f}"}
            axes.plot(RECALLS, precision, **(style if few else FAN))
        if len(measured) > 1:
            name = f"mean of {len(measured)}  {100 * metrics[total]:.1f}"
            axes.plot(
                RECALLS,
                np.mean(curves, axis=0),
                color="black",
                lw=1.5 if few else 2.5,
                ls="--" if few else "-",
                label=name,
            )
        dress(axes, f"IoU {iou}", "recall", "precision" if iou == "0.5" else "")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        if measured:
            axes.legend(title="AP at this IoU, %", loc="lower left", fontsize=9)
        else:
            axes.text(0.5, 0.5, "no annotated boxes to measure against", ha="center", va="center", color="0.4")
    return figure


def training_curves(training_csv: str | Path, validation_csv: str | Path | None, path: str | Path) -> Path:
    """Plot losses, learning rate and validation metrics over the steps. Returns the path.

    Args:
        training_csv: columns step, epoch, lr, loss, then one for each part of the loss.
        validation_csv: columns step, epoch, then metrics in 0..1 such as AP and AP50, and losses named as in training;
            may be missing or empty.
        path: output file; its extension gives the format.

    Raises:
        DoubleheadError: matplotlib is not installed, or the training file is missing, empty or not numeric.
    """
    training = _columns(Path(training_csv))
    if not len(training.get("step", ())):
        raise DoubleheadError(f"{training_csv}: there are no training steps to plot")
    measured = validation_csv is not None and Path(validation_csv).is_file()
    validation = _columns(Path(validation_csv)) if measured else {}  # type: ignore[arg-type]
    figure = new_figure(15, 4.6)
    losses, rate, figures = figure.subplots(1, 3, width_ratios=(1.5, 0.8, 1.2))
    steps = training["step"]

    parts = [name for name in training if name not in ("step", "epoch", "lr", "time")]
    window = max(1, len(steps) // 40)
    for place, name in enumerate(parts):
        colour = "black" if name == "loss" else line_colour(place)
        values = np.where(training[name] > 0, training[name], np.nan)  # a log scale has no place for 0
        if window > 1:
            losses.plot(steps, values, color=colour, lw=0.6, alpha=0.22)
        losses.plot(steps, _smoothed(values, window), color=colour, lw=2.2 if name == "loss" else 1.5, label=name)
    if len(validation.get("loss", ())):
        style = {"color": "black", "lw": 1.5, "ls": "--", "marker": "o", "ms": 3.5, "label": "loss on val"}
        losses.plot(validation["step"], validation["loss"], **style)
    dress(losses, "training loss, smoothed" if window > 1 else "training loss", "step", "")
    if any(np.nansum(training[name]) > 0 for name in parts):
        losses.set_yscale("log")
    if parts:
        losses.legend(fontsize=9, ncols=2 if len(parts) > 5 else 1)

    if "lr" in training:
        rate.plot(steps, training["lr"], color="black", lw=1.8)
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter("{x:.3g}")
    dress(rate, "learning rate", "step", "")

    _validation_panel(figures, {name: values for name, values in validation.items() if name not in parts})
    for axes in (losses, rate, figures):
        axes.set_xlim(0, max(steps.max(), 1))
    return _write(figure, path)


def rate_sweep(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggested: float, path: str | Path
) -> Path:
    """Plot losses against a rising learning rate, and the suggested rate. Returns the path.

    Raises:
        DoubleheadError: matplotlib is not installed.
    """
    figure = new_figure(7, 4.6)
    axes = figure.subplots()
    axes.plot(rates, losses, color="black", lw=0.6, alpha=0.3, label="each step")
    axes.plot(rates, smoothed, color="black", lw=2, label="smoothed")
    axes.axvline(suggested, color=line_colour(1), lw=1.5, ls="--", label=f"suggested {suggested:g}")
    dress(axes, "training loss at rising learning rates", "learning rate", "")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * max(max(smoothed[: len(smoothed) // 2 + 1]), 1.5 * min(smoothed)))
    axes.legend(fontsize=9)
    return _write(figure, path)


def compared(
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    differences: Sequence[tuple[float, float, float] | None],
    baseline: str,
    path: str | Path,
) -> Path:
    """Plot rows of a study: a dot per seed, the mean, and the difference to a baseline. Returns the path.

    Args:
        names: names of the rows, top to bottom.
        values: AP of each row's seeds, in 0..1.
        differences: mean, low and high, in 0..1; None for the baseline.
        baseline: name of the baseline.
        path: output file; its extension gives the format.

    Raises:
        DoubleheadError: matplotlib is not installed.
    """
    figure = new_figure(11, 1.6 + 0.42 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    for place, (seeds, difference) in enumerate(zip(values, differences, strict=True)):
        colour = "0.4" if difference is None else line_colour(1)
        left.plot(100 * np.asarray(seeds), [place] * len(seeds), "o", color=colour, alpha=0.55, ms=6)
        left.plot([100 * float(np.mean(seeds))], [place], "|", color="black", ms=16, mew=2)
        if difference is not None:
            middle, low, high = (100 * value for value in difference)
            right.plot([low, high], [place, place], color=colour, lw=2.5, alpha=0.55)
            right.plot([middle], [place], "o", color="black", ms=6)
    right.axvline(0, color="0.4", lw=1)
    dress(left, "AP, %: each seed, and the mean", "", "")
    dress(right, f"AP minus that of {baseline}, with 95% interval", "", "")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    return _write(figure, path)


def by_iou(
    names: Sequence[str],
    aps: Sequence[Sequence[float]],
    differences: Sequence[Sequence[tuple[float, float, float]]],
    baseline: str,
    path: str | Path,
) -> Path:
    """Plot AP against the IoU threshold, and the difference to a baseline. Returns the path.

    Args:
        names: names of the rows.
        aps: AP of each row at the thresholds from 0.50 to 0.95, in 0..1.
        differences: mean, low and high of each row at each threshold, in 0..1; empty for the baseline.
        baseline: name of the baseline.
        path: output file; its extension gives the format.

    Raises:
        DoubleheadError: matplotlib is not installed.
    """
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    for place, (name, ap, apart) in enumerate(zip(names, aps, differences, strict=True)):
        thresholds = np.linspace(0.5, 0.95, len(ap))
        colour = line_colour(place) if apart else "black"
        left.plot(thresholds, 100 * np.asarray(ap), "o-", color=colour, ms=4, label=name)
        if apart:
            middle, low, high = 100 * np.asarray(apart).T
            right.plot(thresholds, middle, "o-", color=colour, ms=4, label=name)
            right.fill_between(thresholds, low, high, color=colour, alpha=0.12, lw=0)
    right.axhline(0, color="black", lw=1)
    dress(left, "AP, %", "IoU threshold", "")
    dress(right, f"AP minus that of {baseline}, with 95% interval", "IoU threshold", "")
    left.legend(fontsize=9)
    return _write(figure, path)


def truth_and_predictions(
    pairs: Sequence[tuple[Image.Image, np.ndarray, np.ndarray, Detections]],
    path: str | Path,
    *,
    score: float = 0.5,
    rows: int = 8,
    width: int = 640,
) -> Path:
    """Draw a contact sheet, one image per row: ground truth on the left, predictions on the right. Returns the path.

    Args:
        pairs: image, ground-truth boxes (N, 4) xyxy in pixels, their labels (N,) 1..C, and detections.
        path: output file, .jpg or .png.
        score: minimum score of predictions drawn.
        rows: maximum rows, taken from the start of `pairs`.
        width: width of each image on the sheet, in pixels.

    Raises:
        DoubleheadError: `pairs` is empty, or the extension is not an image format.
    """
    if not pairs:
        raise DoubleheadError("there are no images to put on the sheet of truth and predictions")
    gap, header = 8, 34
    cells = []
    for image, boxes, labels, detections in pairs[:rows]:
        # Scaled before drawing, so that lines and captions are the same size for all images.
        scale = min(width / image.width, width / image.height)
        small = image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        names = [detections.names[int(label) - 1] for label in labels]
        truth = draw_boxes(small, np.asarray(boxes, dtype=np.float32).reshape(-1, 4) * scale, labels, names)
        scaled = Detections(
            detections.boxes * scale, detections.scores, detections.labels, detections.names, detections.category_ids
        )
        cells.append((truth, scaled.draw(small, score)))
    height = header + sum(truth.height + gap for truth, _ in cells)
    sheet = Image.new("RGB", (2 * width + 3 * gap, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    lefts = (gap, width + 2 * gap)
    for left, title in zip(lefts, ("truth", f"predictions, score at least {score:g}"), strict=True):
        pen.text((left, 7), title, fill="black", font=font)
    top = header
    for row in cells:
        for left, picture in zip(lefts, row, strict=True):
            sheet.paste(picture, (left + (width - picture.width) // 2, top))
        top += row[0].height + gap
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(sheet, path)
    return path


def _validation_panel(axes: Axes, validation: dict[str, np.ndarray]) -> None:
    """Plot AP, AP50, AP75 and that of a class, or else all metrics. Sizes and recalls are omitted for clarity."""
    names = [name for name in validation if name not in ("step", "epoch", "time")]
    names = [name for name in names if name in ("AP", "AP50", "AP75") or name.startswith("AP of ")] or names
    dress(axes, "validation, %", "step", "")
    axes.set_ylim(0, 100)
    if not names or not len(validation.get("step", ())):
        axes.text(0.5, 0.5, "not measured yet", ha="center", va="center", color="0.4", transform=axes.transAxes)
        return
    for place, name in enumerate(names, 1):
        values = 100 * validation[name]
        best = f"  best {np.nanmax(values):.1f}" if not np.isnan(values).all() else ""
        axes.plot(validation["step"], values, marker="o", ms=3.5, lw=1.8, color=line_colour(place), label=name + best)
    axes.legend(fontsize=9, loc="lower right")


def new_figure(width: float, height: float) -> Figure:
    """Create a figure of a size in inches without pyplot, which would keep it alive and switch the caller's backend.

    Raises:
        DoubleheadError: matplotlib is not installed.
    """
    require("matplotlib", "plots")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Set title, labels and grid, the common style of all figures."""
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def svg(figure: Figure) -> str:
    """Convert a figure to a data URI."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return data_uri(file.getvalue(), "image/svg+xml")


def _write(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise DoubleheadError(f"{path}: {path.suffix or 'no file ending'} is not a picture format; use .png") from error
    return path


def _columns(path: Path) -> dict[str, np.ndarray]:
    """Read the columns of a CSV with a header. Empty cells are NaN; an incomplete last line is ignored."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]  # an empty file has no header either
        table = [[float(cell) if cell else math.nan for cell in row] for row in rows if len(row) == len(header)]
    except OSError as error:
        raise DoubleheadError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DoubleheadError(f"{path}: {error}; every cell below the header must be a number") from error
    values = np.array(table, dtype=np.float64).reshape(len(table), len(header))
    return {name: values[:, place] for place, name in enumerate(header)}


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a centred window, which shrinks at both ends and skips NaN."""
    known = ~np.isnan(values)
    sums = np.concatenate([[0], np.cumsum(np.where(known, values, 0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(values))
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def line_colour(label: int) -> tuple[Any, ...]:
    """Colour of a class's lines for matplotlib."""
    return tuple(value / 255 for value in class_colour(max(1, label)))
