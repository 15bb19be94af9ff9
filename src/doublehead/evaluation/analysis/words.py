"""Findings as sentences. They claim a difference only if its interval excludes 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from doublehead.evaluation.analysis.curves import FOREGROUND, Curve, difference, mean
from doublehead.evaluation.analysis.heads import FUSED
from doublehead.evaluation.analysis.look import ModelAnalysis
from doublehead.evaluation.analysis.result import Analysis
from doublehead.evaluation.analysis.spatial import Correlation

REMEDIES = {
    "classification": "wrong classes",
    "localisation": "poor boxes",
    "both": "poor boxes of wrong classes",
    "duplicate": "duplicates",
    "background": "detections on the background",
    "missed": "missed objects",
}
"""What fixing each kind of error removes, in words."""


def head_name(analysis: Analysis, model: str, branch: str) -> str:
    """Display name of a head, with its model if there are several."""
    name = branch_name(branch)
    return f"{name} of {model}" if len(analysis.models) > 1 else name


def branch_name(branch: str) -> str:
    """Display name of a branch, or of all together."""
    return "fused heads" if branch == FUSED else f"{branch}-head"


def combination_name(score: str, box: str) -> str:
    """Display name of a combination of heads."""
    return f"{score} scores, {box} boxes"


def found(analysis: Analysis) -> list[tuple[str, str]]:
    """Summary at the top of the page: findings on scores, boxes, positions and errors, by topic."""
    several = len(analysis.models) > 1
    return [
        ("Scores", scores(analysis)),
        ("Boxes", boxes(analysis)),
        ("Positions", positions(analysis)),
        *((f"Errors of {m.name}" if several else "Errors", errors(m)) for m in analysis.models),
        *((f"Stages of {m.name}" if several else "Stages", stages(m)) for m in analysis.models if m.stages > 1),
    ]


def stages(model: ModelAnalysis) -> str:
    """Explain which stages of a cascade the figures describe."""
    return (
        f"The model is a cascade of {model.stages} stages. Its detections and their errors are those of all stages; "
        "scores, boxes and positions are those of the last stage's heads, asked about the windows themselves."
    )


def scores(analysis: Analysis) -> str:
    """How closely the scores of single heads follow IoU."""
    curves = [curve for model in analysis.models for curve in model.scores if curve.branch != FUSED]
    if len(curves) == 1:
        (only,) = curves
        known = sum(value == value for value in only.per_object)
        return (
            f"The {head_name(analysis, only.model, only.branch)}'s score follows the IoU of a proposal with a "
            f"correlation of {mean(only.per_object):.3f} (PCC, mean of {known} objects)."
        )
    return _compared(
        analysis,
        curves,
        "Scores follow the IoU of proposals most closely in the {best} (mean PCC {high}) and least in the {worst} "
        "({low})",
        "No head's scores can be said to follow IoU more closely than another's: mean PCC {high} in the {best} and "
        "{low} in the {worst}",
    )


def boxes(analysis: Analysis) -> str:
    """How well the heads regress proposals that overlap their object."""
    curves = [curve for model in analysis.models for curve in model.boxes if curve.branch != FUSED]
    if len(curves) == 1:
        (only,) = curves
        name = head_name(analysis, only.model, only.branch)
        return (
            f"From proposals of IoU {FOREGROUND} and more, the {name} regresses boxes of mean IoU "
            f"{mean(only.per_object):.3f}."
        )
    return _compared(
        analysis,
        curves,
        f"From proposals of IoU {FOREGROUND} and more, boxes come out best from the {{best}} (mean IoU {{high}}) "
        "and worst from the {worst} ({low})",
        f"No head can be said to regress better than another: from proposals of IoU {FOREGROUND} and more, mean IoU "
        "{high} in the {best} and {low} in the {worst}",
    )


def positions(analysis: Analysis) -> str:
    """How similar the outputs are across positions."""
    outputs = [c for model in analysis.models for c in model.correlations if c.branch and c.of != "weights"]

    def said(correlation: Correlation) -> str:
        return f"{head_name(analysis, correlation.model, correlation.branch or '')} {correlation.mean:.2f}"

    ordered = sorted(outputs, key=lambda c: -c.mean)
    return f"Mean correlation between the outputs at different positions of an object: {_listed(map(said, ordered))}."


def errors(model: ModelAnalysis) -> str:
    """Which errors of a model cost most AP."""
    breakdown = model.combinations[0].breakdown
    points = {kind: 100 * gain for kind, gain in breakdown.gains.items()}
    first, *others = sorted(points, key=lambda kind: -points[kind])
    rest = _listed(f"{REMEDIES[kind]} ({points[kind]:.1f})" for kind in others[:2])
    boxes, classes = points["localisation"], points["classification"]
    if f"{boxes:.1f}" == f"{classes:.1f}":
        told = "Poor boxes and wrong classes cost the same"
    elif boxes > classes:
        told = "Poor boxes cost more than wrong classes"
    else:
        told = "Wrong classes cost more than poor boxes"
    return (
        f"Detections have AP50 {100 * breakdown.ap50:.1f}. Fixing {REMEDIES[first]} would gain most "
        f"({points[first]:.1f} points), then {rest}. {told} ({boxes:.1f} and {classes:.1f} points)."
    )


def _compared(analysis: Analysis, curves: Sequence[Curve], apart: str, alike: str) -> str:
    """Compare the best head with the worst, on objects with a figure of both; `apart` if the interval excludes 0."""
    ordered = sorted(curves, key=lambda curve: -mean(curve.per_object))
    best, worst = ordered[0], ordered[-1]
    found = difference(best.per_object, worst.per_object, analysis.models[0].image_ids)
    text = (apart if found.certain else alike).format(
        best=head_name(analysis, best.model, best.branch),
        worst=head_name(analysis, worst.model, worst.branch),
        high=f"{mean(best.per_object):.3f}",
        low=f"{mean(worst.per_object):.3f}",
    )
    return (
        f"{text}; difference {found.mean:.3f}, 95% interval {found.low:.3f} to {found.high:.3f}, "
        f"{found.objects} objects."
    )


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
