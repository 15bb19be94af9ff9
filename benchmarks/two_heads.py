"""Two heads against one, as one picture: AP and its difference by IoU threshold, and AP by steps.

    python -m benchmarks.two_heads docs/images/two-heads.png

Reads what `doublehead study` writes to studies/results/two-heads and raccoon-folds with single-fc as the baseline, and
<steps>/<dataset>/<row>/seed-<n>/result.json below studies/results/budget.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np
import typer

from doublehead.common.errors import DoubleheadError
from doublehead.evaluation.plots import dress, line_colour, new_figure
from doublehead.training.study.summary import IOUS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).parent.parent / "studies" / "results"
FOLDERS = {
    "chess": ["two-heads/chess"],
    "bccd": ["two-heads/bccd"],
    "raccoon": [f"raccoon-folds/raccoon-{fold}" for fold in (1, 2, 3)],
}
BASELINE = "single-fc"
NAMES = {
    BASELINE: BASELINE,
    "double-head": "double-head",
    "fused boxes": "double-head-fused",
    "torchvision": "torchvision",
}
"""What is drawn: rows of the studies, and what they are called."""
COLOURS = dict(zip(NAMES, ("black", *map(line_colour, (1, 2, 3))), strict=True))
APART = ("double-head", "fused boxes")


def lines_of(file: Path, row: str) -> list[dict[str, str]]:
    """Lines of a comparison that are about a row."""
    if not file.exists():
        raise DoubleheadError(f"{file}: does not exist; run the study first, with --baseline {BASELINE}")
    with file.open(newline="", encoding="utf-8") as text:
        return [line for line in csv.DictReader(text) if line["row"] == row]


def aps(folders: Sequence[str], row: str) -> np.ndarray:
    """AP at each of COCO's thresholds, in per cent: (10,), the mean over folders."""
    found = [line for folder in folders for line in lines_of(RESULTS / folder / "summary.csv", row)]
    return 100 * np.mean([[float(line[f"AP_at_{at:.2f}"]) for at in IOUS] for line in found], axis=0)


def difference(folders: Sequence[str], row: str) -> np.ndarray:
    """Difference to the baseline, and the ends of its interval, in per cent: (10, 3); of several folders: pooled."""
    names = ("difference", "low", "high")
    if len(folders) == 1:
        (line,) = lines_of(RESULTS / folders[0] / "summary.csv", row)
        found = [[float(line[f"{name}_at_{at:.2f}"]) for name in names] for at in IOUS]
    else:
        _, *lines = lines_of((RESULTS / folders[0]).parent / "pooled.csv", row)  # the first is of all thresholds
        found = [[float(line[name]) for name in names] for line in lines]
    return 100 * np.array(found)


def by_steps(data: str) -> dict[str, dict[int, float]]:
    """AP of each row by its steps, in per cent: the mean over seeds."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(RESULTS.glob(f"budget/*/{data}/*/seed-*/result.json")):
        steps, _, row, _ = file.parent.relative_to(RESULTS / "budget").parts
        found[row][int(steps)].append(100 * json.loads(file.read_text(encoding="utf-8"))["metrics"]["AP"])
    return {row: {steps: mean(seeds) for steps, seeds in sorted(by.items())} for row, by in found.items()}


def draw_thresholds(level: Axes, apart: Axes, folders: Sequence[str]) -> None:
    """AP by IoU threshold, and the difference with its interval."""
    for row in (BASELINE, *APART):
        level.plot(IOUS, aps(folders, row), "o-", color=COLOURS[row], ms=4, label=NAMES[row])
    for row in APART:
        middle, low, high = difference(folders, row).T
        apart.plot(IOUS, middle, "o-", color=COLOURS[row], ms=4)
        apart.fill_between(IOUS, low, high, color=COLOURS[row], alpha=0.12, lw=0)
    apart.axhline(0, color="black", lw=1)


def draw_steps(axes: Axes, rows: dict[str, dict[int, float]]) -> None:
    """AP by steps, on a logarithmic axis."""
    for row, name in NAMES.items():
        if row in rows:
            axes.plot(list(rows[row]), list(rows[row].values()), "o-", color=COLOURS[row], ms=4, label=name)
    axes.set_xscale("log")
    ticks = sorted({steps for found in rows.values() for steps in found})
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()


def main(picture: Path) -> None:
    """Draw the picture."""
    figure = new_figure(5 * len(FOLDERS), 11)
    axes = figure.subplots(3, len(FOLDERS))
    for (level, apart, steps), (name, folders) in zip(axes.T, FOLDERS.items(), strict=True):
        draw_thresholds(level, apart, folders)
        draw_steps(steps, by_steps(name))
        dress(level, f"{name}: AP, %", "IoU threshold", "")
        dress(apart, f"AP minus that of {BASELINE}", "IoU threshold", "")
        dress(steps, "AP by budget, %", "steps; torchvision: equal time", "")
        level.legend(frameon=False)
        steps.legend(frameon=False)
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    typer.run(main)
