"""AP of finished runs against their steps, as one picture.

    python -m benchmarks.budget docs/images/two-heads-by-steps.png

Reads <steps>/<dataset>/<row>/seed-<n>/result.json below studies/results/budget; draws each row's mean over seeds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

import typer

from doublehead.evaluation.plots import dress, line_colour, new_figure

RUNS = Path(__file__).parent.parent / "studies" / "results" / "budget"
COLOURS = {"single-fc": "black", "double-head": line_colour(1), "torchvision": line_colour(2)}


def figures(runs: Path) -> dict[str, dict[str, dict[int, float]]]:
    """AP in per cent: dataset -> row -> steps -> mean over seeds; only datasets where each row has several."""
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for file in sorted(runs.glob("*/*/*/seed-*/result.json")):
        steps, data, row, _ = file.parent.relative_to(runs).parts
        found[data][row][int(steps)].append(100 * json.loads(file.read_text(encoding="utf-8"))["metrics"]["AP"])
    means = {
        data: {row: {steps: mean(aps) for steps, aps in sorted(by.items())} for row, by in rows.items()}
        for data, rows in found.items()
    }
    return {data: rows for data, rows in means.items() if min(map(len, rows.values())) > 1}


def main(picture: Path) -> None:
    """Draw the AP of finished runs against their steps."""
    data = figures(RUNS)
    figure = new_figure(5.5 * len(data), 4.2)
    for axes, (name, rows) in zip(figure.subplots(1, len(data), squeeze=False)[0], data.items(), strict=True):
        for row, by_steps in rows.items():
            axes.plot(list(by_steps), list(by_steps.values()), "o-", color=COLOURS[row], ms=4, label=row)
        dress(axes, f"AP on {name}, %", "steps", "")
        axes.set_xscale("log")
        ticks = sorted({steps for by_steps in rows.values() for steps in by_steps})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.legend(frameon=False)
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    typer.run(main)
