"""The figures of the report, each as a data URI that the page carries in itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from doublehead.evaluation.coco import RECALLS
from doublehead.evaluation.plots import FAN, MANY, dress, line_colour, new_figure, precision_recall_figure, svg
from doublehead.evaluation.report.measured import Measured
from doublehead.evaluation.report.reliability import BINS, Reliability
from doublehead.evaluation.thresholds import Sweep

GRID = np.linspace(0, 1, 101)
"""Scores at which curves are drawn and tables written."""

_PANEL = (5.4, 3.9)  # inches: of a size to be read on a phone, one to a line
_PRECISION, _RECALL, _F1 = "#1971c2", "#2f9e44", "#d9480f"
_MODELS = ("#1971c2", "#d9480f", "#2f9e44", "#7048e8", "#c2255c", "#495057")


def precision_recall(one: Measured) -> str:
    """Precision against recall, by class."""
    return svg(precision_recall_figure(one.evaluation.metrics))


def thresholds(one: Measured) -> str:
    """Precision, recall and F1 against the score that detections are cut at, all classes together."""
    figure = new_figure(*_PANEL)
    axes = figure.subplots()
    cuts = [one.sweep.at(score) for score in GRID]
    for name, colour in (("precision", _PRECISION), ("recall", _RECALL), ("f1", _F1)):
        values = [getattr(cut, name) for cut in cuts]
        axes.plot(GRID, values, color=colour, lw=2.2, label="F1" if name == "f1" else name)
    axes.axvline(one.cut.score, color="0.4", lw=1, ls="--", label=f"threshold {one.cut.score:.2f}")
    dress(axes, "all classes together", "score from which detections are accepted", "")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=9, loc="lower left")
    return svg(figure)


def f1_by_class(one: Measured) -> str:
    """F1 against score, by class."""
    figure = new_figure(*_PANEL)
    axes = figure.subplots()
    known = [(k, c) for k, c in enumerate(one.classes, 1) if c.sweep.objects]
    few = len(known) <= MANY
    for label, each in known:
        name = one.matched.categories.names[label - 1]
        style = {"color": line_colour(label), "lw": 1.8, "label": f"{name}  {100 * each.best.f1:.1f}"}
        axes.plot(GRID, _f1(each.sweep), **(style if few else FAN))
    axes.plot(GRID, _f1(one.sweep), color="black", lw=2.2, ls="--", label=f"together  {100 * one.best.f1:.1f}")
    dress(axes, "F1 by class", "score from which detections are accepted", "F1")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8, title="best, %", loc="lower left", ncols=2 if few and len(known) > 6 else 1)
    return svg(figure)


def reliability_diagram(title: str, found: Reliability) -> str:
    """The share of right detections against their score, over the number of detections."""
    figure = new_figure(*_PANEL)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    centres = (np.arange(BINS) + 0.5) / BINS
    axes.bar(centres, np.nan_to_num(found.right), width=0.9 / BINS, color=_PRECISION, label="right")
    axes.plot([0, 1], [0, 1], color="0.4", lw=1, ls="--", label="calibrated")
    axes.plot(found.score, found.right, "o", color=_F1, ms=4, label="mean score")
    dress(axes, f"{title}: calibration error {100 * found.error:.1f}%", "", "share right")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=9, loc="upper left")
    counts.bar(centres, found.count, width=0.9 / BINS, color="0.6")
    dress(counts, "", "score", "detections")
    if found.count.max(initial=0) > 50 * max(1, found.count[found.count > 0].min(initial=1)):
        counts.set_yscale("log")
    return svg(figure)


def compared_precision_recall(models: Sequence[Measured]) -> str:
    """Mean precision of the classes against recall at IoU 0.5, a line for each model."""
    figure = new_figure(*_PANEL)
    axes = figure.subplots()
    for place, one in enumerate(models):
        metrics = one.evaluation.metrics
        curves = [c.curve50.precision for c in metrics.classes if c.boxes]
        mean = np.mean(curves, axis=0) if curves else np.full(len(RECALLS), np.nan)
        label = f"{one.name}  {100 * metrics['AP50']:.1f}"
        axes.plot(RECALLS, mean, color=_MODELS[place % len(_MODELS)], lw=2, label=label)
    dress(axes, "mean of the classes, IoU 0.5", "recall", "precision")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=9, title="AP50, %", loc="lower left")
    return svg(figure)


def compared_f1(models: Sequence[Measured]) -> str:
    """F1 of all classes together against score, a line for each model."""
    figure = new_figure(*_PANEL)
    axes = figure.subplots()
    for place, one in enumerate(models):
        label = f"{one.name}  {100 * one.best.f1:.1f}"
        axes.plot(GRID, _f1(one.sweep), color=_MODELS[place % len(_MODELS)], lw=2, label=label)
    dress(axes, "F1, all classes together", "score from which detections are accepted", "F1")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=9, title="best, %", loc="lower left")
    return svg(figure)


def _f1(sweep: Sweep) -> list[float]:
    return [sweep.at(score).f1 for score in GRID]
