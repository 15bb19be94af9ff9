"""The report: a self-contained index.html, and the same numbers as analysis.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import doublehead
from doublehead.common.pages.pages import render
from doublehead.common.plain import plain
from doublehead.evaluation.analysis import figures, words
from doublehead.evaluation.analysis.breakdown import BACKGROUND, FOREGROUND, HIT, KINDS
from doublehead.evaluation.analysis.curves import Bins, Curve, mean
from doublehead.evaluation.analysis.look import ModelAnalysis
from doublehead.evaluation.analysis.proposals import SIZES
from doublehead.evaluation.analysis.result import Analysis
from doublehead.evaluation.analysis.spatial import Correlation
from doublehead.evaluation.budget import BINS

WORST = 4
"""Number of pictures per model."""


def write_report(analysis: Analysis, folder: Path) -> None:
    """Write index.html and analysis.json.

    Raises:
        DoubleheadError: matplotlib is not installed, or an image can no longer be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "analysis.json").write_text(json.dumps(plain(to_json(analysis)), indent=1), encoding="utf-8")
    (folder / "index.html").write_text(page(analysis), encoding="utf-8")


def page(analysis: Analysis) -> str:
    """Render the page as HTML."""
    return render(
        "evaluation/analysis/report.html",
        analysis=analysis,
        found=words.found(analysis),
        counts={size: count for size, count in _counts(analysis).items() if count},
        score_rows=_rows(analysis, [c for m in analysis.models for c in m.scores]),
        box_rows=_rows(analysis, [c for m in analysis.models for c in m.boxes]),
        survivor_rows=_survivor_rows(analysis),
        correlation_rows=[(_of(analysis, c), c.mean) for m in analysis.models for c in m.correlations],
        combination_rows=_combination_rows(analysis),
        most=max(gain for m in analysis.models for c in m.combinations for gain in c.breakdown.gains.values()),
        kinds=KINDS,
        thresholds=(FOREGROUND, BACKGROUND),
        colours={kind: figures.colour(kind) for kind in (HIT, *KINDS)},
        figures=_figures(analysis),
        pictures=[(model.name, _pictures(analysis, model)) for model in analysis.models],
    )


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Convert all numbers of the report to plain values."""
    return {
        "doublehead": doublehead.__version__,
        "found": dict(words.found(analysis)),
        "data": analysis.data,
        "split": analysis.split,
        "classes": analysis.categories.names,
        "images": analysis.images,
        "objects": _counts(analysis),
        "windows_per_object": analysis.windows,
        "budget": asdict(analysis.budget),
        "seconds": analysis.seconds,
        "bins": [place / BINS for place in range(BINS + 1)],
        "object_image_ids": analysis.models[0].image_ids,
        "object_sizes": analysis.models[0].sizes,
        "models": [_model_json(model) for model in analysis.models],
    }


def _model_json(model: ModelAnalysis) -> dict[str, Any]:
    return {
        "name": model.name,
        "weights": model.weights,
        "preset": model.preset,
        "score_against_iou": [_curve_json(curve, "pcc") for curve in model.scores],
        "regressed_iou_against_iou": [_curve_json(curve, "foreground_mean") for curve in model.boxes],
        "after_nms": [
            {
                "scores": row.score_branch,
                "boxes": row.box_branch or "windows",
                "best_iou": row.best,
                "survivors": row.kept,
                "survivors_mean_iou": row.mean,
            }
            for row in model.survivors
        ],
        "spatial_correlation": [
            {
                "branch": c.branch,
                "of": c.of,
                "mean": c.mean,
                "by_distance": dict(zip(("distance", "mean"), c.by_distance(), strict=True)),
                "matrix": c.matrix.round(5),
            }
            for c in model.correlations
        ],
        "combinations": [
            {"scores": c.score_branch, "boxes": c.box_branch, "AP": c.ap, "AP75": c.ap75} | c.breakdown.to_json()
            for c in model.combinations
        ],
    }


def _curve_json(curve: Curve, figure: str) -> dict[str, Any]:
    def bins(of: Bins) -> dict[str, Any]:
        return {"mean": of.mean, "deviation": of.deviation, "count": of.count}

    return {
        "branch": curve.branch,
        "mean_" + figure: mean(curve.per_object),
        figure: curve.per_object,
        "bins": {size: bins(of) for size, of in curve.bins.items()},
    }


def _of(analysis: Analysis, correlation: Correlation) -> str:
    """Describe what is compared over positions, and of which head."""
    if correlation.branch is None:
        return correlation.of + (f" of {correlation.model}" if len(analysis.models) > 1 else "")
    return f"{words.head_name(analysis, correlation.model, correlation.branch)}: {correlation.of}"


def _figures(analysis: Analysis) -> dict[str, list[tuple[str, str]]]:
    """Figures as data URIs with descriptions, by section."""
    models = [model.name for model in analysis.models]

    def name(model: str, branch: str) -> str:
        return words.head_name(analysis, model, branch)

    counts = _counts(analysis)
    sizes = [("all", f"all {sum(counts.values())} objects")]
    sizes += [(size, f"{counts[size]} {size} objects") for size in SIZES if counts[size]]
    scores, boxes = ([c for m in analysis.models for c in getattr(m, kind)] for kind in ("scores", "boxes"))
    rows = [row for model in analysis.models for row in model.survivors]
    own = {model.name: model.combinations[0].box_branch for model in analysis.models}
    windows = [row for row in rows if row.box_branch is None]
    regressed = [row for row in rows if row.box_branch == own[row.model]]
    correlations = [c for model in analysis.models for c in model.correlations]
    against = figures.against_iou
    gains = [(name, model.combinations[0].breakdown.gains) for name, model in zip(models, analysis.models, strict=True)]
    return {
        "scores": [(against(scores, models, name, s, t, False), f"Score against IoU, {t}") for s, t in sizes],
        "pcc": [(figures.distribution(scores, models, name), "Distribution of the PCC over objects")],
        "boxes": [(against(boxes, models, name, s, t, True), f"Regressed IoU against IoU, {t}") for s, t in sizes],
        "nms": [
            (
                figures.survivors(windows, models, name, "windows left as they are"),
                "IoU of the best-scored window after NMS",
            ),
            (
                figures.survivors(regressed, models, name, "boxes regressed by the model's box head"),
                "IoU of the best-scored regressed box after NMS",
            ),
        ],
        "maps": [
            (figures.maps(c, _of(analysis, c)), f"{_of(analysis, c)}, 7x7 maps of 7x7 positions") for c in correlations
        ],
        "distance": [
            (figures.by_distance(correlations, models, partial(_of, analysis)), "Correlation by distance of positions")
        ],
        "gains": [(figures.gains(gains), "Points of AP50 gained by fixing each kind of error")],
    }


def _pictures(analysis: Analysis, model: ModelAnalysis) -> list[tuple[str, str]]:
    """Draw the images with the highest cost, each with a description of its errors."""
    worst = sorted(model.combinations[0].images, key=lambda image: -image.cost)[:WORST]
    result = []
    for image in worst:
        counts = {kind: image.kinds.count(kind) for kind in KINDS[:-1]} | {"missed": len(image.missed)}
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        if said:
            result.append((figures.picture(image, analysis.categories), f"{image.record.path.name}: {said}"))
    return result


def _rows(analysis: Analysis, curves: list[Curve]) -> list[tuple[str, list[float]]]:
    """Mean figure of each head for all, small, medium and large objects."""
    sizes = analysis.models[0].sizes
    wanted = [size for size, count in _counts(analysis).items() if count]
    rows = []
    for curve in curves:
        by_size = [[v for v, s in zip(curve.per_object, sizes, strict=True) if s == size] for size in wanted]
        means = [mean(curve.per_object), *map(mean, by_size)]
        rows.append((words.head_name(analysis, curve.model, curve.branch), means))
    return rows


def _survivor_rows(analysis: Analysis) -> list[tuple[str, str, float, float, float]]:
    return [
        (
            words.head_name(analysis, row.model, row.score_branch),
            "left as they are" if row.box_branch is None else words.branch_name(row.box_branch),
            mean(row.best),
            mean(row.mean),
            float(np.mean(row.kept)),
        )
        for model in analysis.models
        for row in model.survivors
    ]


def _combination_rows(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {
            "model": model.name,
            "name": words.combination_name(c.score_branch, c.box_branch),
            "own": place == 0,
            "ap": c.ap,
            "ap75": c.ap75,
            "breakdown": c.breakdown,
        }
        for model in analysis.models
        for place, c in enumerate(model.combinations)
    ]


def _counts(analysis: Analysis) -> dict[str, int]:
    sizes = [each.size for each in analysis.objects]
    return {size: sizes.count(size) for size in SIZES}
