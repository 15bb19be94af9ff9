"""Figures of the report, each embedded in the page as a data URI of an SVG or JPEG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from doublehead.common.categories import Categories
from doublehead.common.pages.pages import jpeg
from doublehead.data.images import read_image
from doublehead.evaluation.analysis.breakdown import HIT, KINDS, Judged
from doublehead.evaluation.analysis.curves import Curve, Survivors, mean
from doublehead.evaluation.analysis.spatial import Correlation
from doublehead.evaluation.budget import BINS
from doublehead.evaluation.plots import dress, new_figure, svg
from doublehead.inference.detections import class_colour, draw_boxes
from doublehead.model.box_head import RESOLUTION

Named = Callable[[str, str], str]
"""Returns a head's name for a model and a branch."""

PANEL = (5.4, 3.9)  # inches: of a size to be read on a phone, one to a line
CENTRES = (np.arange(BINS) + 0.5) / BINS

_COLOURS = {"fc": "#d9480f", "conv": "#1971c2", "fused": "#2f9e44"}
_LINES = ("-", "--", ":", "-.")
_BARS = ("#364fc7", "#f08c00", "#2b8a3e", "#a61e4d")

COLOUR_OF_KIND = dict(zip((*KINDS, HIT), (5, 2, 7, 4, 1, 8, 3), strict=True))
"""Labels to which `class_colour` assigns clearly distinct colours."""

_DRAWN_SCORE = 0.3
_PICTURE = 720  # pixels, the longer side


def against_iou(curves: Sequence[Curve], models: list[str], name: Named, size: str, title: str, regressed: bool) -> str:
    """Plot mean and deviation of scores, or of the IoU of regressed boxes, in each range of proposal IoU."""
    figure = new_figure(*PANEL)
    axes = figure.subplots()
    if regressed:
        axes.plot([0, 1], [0, 1], color="0.6", lw=1, label="left as it is")
    for curve in curves:
        bins = curve.bins[size]
        style = _style(curve.model, curve.branch, models)
        axes.plot(CENTRES, bins.mean, label=name(curve.model, curve.branch), lw=2.2, **style)
        low, high = bins.mean - bins.deviation, bins.mean + bins.deviation
        axes.fill_between(CENTRES, low, high, color=style["color"], alpha=0.10, lw=0)
    dress(
        axes, title, "IoU of the proposal", "IoU of the regressed box" if regressed else "score of the object's class"
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=9, loc="upper left", framealpha=0.85)
    return svg(figure)


def distribution(curves: Sequence[Curve], models: list[str], name: Named) -> str:
    """Plot the share of objects whose PCC is at most x; further right is better."""
    figure = new_figure(*PANEL)
    axes = figure.subplots()
    for curve in curves:
        values = np.sort([value for value in curve.per_object if value == value])
        if len(values):
            label = f"{name(curve.model, curve.branch)}: {values.mean():.2f}"
            style = _style(curve.model, curve.branch, models)
            axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=label, lw=2.2, **style)
    dress(axes, "correlation of score and IoU, by object", "PCC of an object's proposals", "share of objects up to it")
    everything = [value for curve in curves for value in curve.per_object if value == value]
    least = np.percentile(everything, 2) if everything else 0  # a few objects far off would push all lines together
    axes.set(ylim=(0, 1.02), xlim=(np.floor(10 * least) / 10, 1))
    axes.legend(fontsize=9, loc="upper left", title="mean", framealpha=0.85)
    return svg(figure)


def survivors(rows: Sequence[Survivors], models: list[str], name: Named, title: str) -> str:
    """Plot the share of objects whose top-scoring box after NMS has an IoU of at least x."""
    figure = new_figure(*PANEL)
    axes = figure.subplots()
    for row in rows:
        values = np.sort(row.best)
        style = _style(row.model, row.score_branch, models)
        shares = 1 - np.arange(len(values)) / len(values)
        label = f"{name(row.model, row.score_branch)}: {mean(row.best):.2f}"
        axes.step(values, shares, where="pre", label=label, lw=2.2, **style)
    dress(axes, title, "IoU of the best-scored box", "share of objects that reach it")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=9, loc="lower left", title="scores of, mean IoU", framealpha=0.85)
    return svg(figure)


def maps(correlation: Correlation, title: str) -> str:
    """Draw a 7x7 grid of 7x7 maps: the similarity of each position to all others."""
    figure = new_figure(3.6, 3.9)
    axes = figure.subplots()
    step = RESOLUTION + 1
    canvas = np.full((RESOLUTION * step - 1,) * 2, np.nan)
    for place, row in enumerate(correlation.matrix):
        top, left = (step * i for i in divmod(place, RESOLUTION))
        canvas[top : top + RESOLUTION, left : left + RESOLUTION] = row.reshape(RESOLUTION, RESOLUTION)
    drawn = axes.imshow(canvas, vmin=-0.2, vmax=1, cmap="viridis", interpolation="nearest")
    axes.set_title(f"{title}\nmean {correlation.mean:.2f}", loc="left", fontsize=11, fontweight="bold")
    axes.set_axis_off()
    figure.colorbar(drawn, ax=axes, shrink=0.75, pad=0.02)
    return svg(figure)


def by_distance(correlations: Sequence[Correlation], models: list[str], name: Callable[[Correlation], str]) -> str:
    """Plot the mean correlation against the distance between positions."""
    figure = new_figure(PANEL[0], PANEL[1] + 0.5)
    axes = figure.subplots()
    for correlation in correlations:
        distances, means = correlation.by_distance()
        style = _style(correlation.model, correlation.branch or "", models)
        if correlation.of == "weights":
            style["alpha"] = 0.45
        axes.plot(distances, means, marker="o", ms=3, lw=2, label=name(correlation), **style)
    dress(axes, "correlation by distance", "distance between two positions of the 7x7", "mean cosine similarity")
    axes.set_ylim(top=1.02)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return svg(figure)


def gains(rows: Sequence[tuple[str, dict[str, float]]]) -> str:
    """Plot the points of AP50 gained by fixing each kind of error, with a group of bars per kind."""
    figure = new_figure(PANEL[0] + 0.6, 3.9)
    axes = figure.subplots()
    width = 0.8 / len(rows)
    for place, (name, gain) in enumerate(rows):
        at = np.arange(len(KINDS)) + (place - (len(rows) - 1) / 2) * width
        values = [100 * gain[kind] for kind in KINDS]
        bars = axes.barh(at, values, width * 0.92, label=name, color=_BARS[place % len(_BARS)])
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    dress(axes, "gain from fixing each kind", "points of AP50", "")
    axes.set_yticks(np.arange(len(KINDS)), KINDS)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    if len(rows) > 1:
        axes.legend(fontsize=9, loc="lower right")
    return svg(figure)


def picture(image: Judged, categories: Categories) -> str:
    """Draw hits, false detections with a score of at least 0.3, and missed objects on the image."""
    full = read_image(image.record.path, image.record.encoded())
    scale = _PICTURE / max(full.size)
    canvas = full.resize([max(1, round(side * scale)) for side in full.size])
    shown = [d for d, kind in enumerate(image.kinds) if kind in KINDS and image.scores[d] >= _DRAWN_SCORE]
    hits = [d for d, kind in enumerate(image.kinds) if kind == HIT and image.scores[d] >= _DRAWN_SCORE]
    canvas = draw_boxes(canvas, image.boxes[hits] * scale, np.full(len(hits), COLOUR_OF_KIND[HIT]))
    kinds = [image.kinds[d] for d in shown] + ["missed"] * len(image.missed)
    labels = [*image.labels[shown], *image.record.labels[image.missed]]
    scores = [f" {image.scores[d]:.2f}" for d in shown] + [""] * len(image.missed)
    boxes = np.concatenate([image.boxes[shown], image.record.boxes[image.missed]]) * scale
    captions = [f"{kind}: {categories.names[k - 1]}{s}" for kind, k, s in zip(kinds, labels, scores, strict=True)]
    return jpeg(draw_boxes(canvas, boxes, np.array([COLOUR_OF_KIND[kind] for kind in kinds], int), captions))


def colour(kind: str) -> str:
    """CSS colour of a kind of error on the pictures."""
    return "rgb({}, {}, {})".format(*class_colour(COLOUR_OF_KIND[kind]))


def _style(model: str, branch: str, models: list[str]) -> dict[str, Any]:
    """Line style: the colour identifies the head, the dash pattern the model."""
    head = next((head for head in _COLOURS if branch.startswith(head)), "")
    return {"color": _COLOURS.get(head, "0.45"), "ls": _LINES[models.index(model) % len(_LINES)]}
