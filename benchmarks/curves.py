"""How the cost grows: with owners of candidate detections, image area and batch, as one picture.

    python -m benchmarks.curves docs/images/performance.png

Every point is a `doublehead benchmark inference` of its own, whose JSON is kept beside the picture's name in
benchmarks/results; a point that is there is not measured again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import typer

from benchmarks.inference import inference
from benchmarks.measure import BenchmarkSettings
from benchmarks.report import write_json

RESULTS = Path(__file__).parent / "results"
CASES = {
    "torchvision Faster R-CNN": ("#7f7f7f", "torchvision Faster R-CNN"),
    "double-head as others run it": ("#d62728", "Double-Head, all proposals through both heads"),
    "double-head staged": ("#1f77b4", "Double-Head staged"),
    "double-head staged, bf16": ("#2ca02c", "Double-Head staged, bf16"),
}
OWNERS = (10, 100, 300, 900)
SIZES = ("480x640", "640x960", "800x1216", "800x1344")
BATCHES = (1, 2, 4)
REPEATS = 5


def point(size: str, owners: int, batch: int) -> dict[str, Any]:
    """The figures of one configuration, measured now or before."""
    file = RESULTS / f"inference-{size}-owners{owners}-batch{batch}.json"
    if not file.exists():
        settings = BenchmarkSettings(size, batch, REPEATS, 2, "cpu", tuple(CASES)[1:])
        write_json(inference(settings, owners).to_json(), file)
    return {case["name"]: case for case in json.loads(file.read_text())["cases"]}


def draw(column: Any, xs: list[float], points: list[dict[str, Any]], per: list[int], label: str) -> None:
    """One line for each case: seconds per image above, ratio to torchvision in the same run below."""
    seconds, ratio = column
    for name, (colour, title) in CASES.items():
        of_case = [point[name] for point in points]
        each = [case["seconds"] / images for case, images in zip(of_case, per, strict=True)]
        seconds.plot(xs, each, marker="o", color=colour, label=title)
        ratio.plot(xs, [case["ratio"] for case in of_case], marker="o", color=colour)
    ratio.set_xlabel(label)
    for axes in column:
        axes.grid(alpha=0.3)


def main(picture: Path) -> None:
    """Measure the points that are missing, and draw them all."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), sharex="col", sharey="row")
    points = [point("800x1216", owners, 1) for owners in OWNERS]
    draw(axes[:, 0], list(OWNERS), points, [1] * len(points), "proposals that own a candidate detection (800x1216)")
    axes[0, 0].set_xscale("log")
    areas = [h * w / 1e6 for h, w in (map(int, size.split("x")) for size in SIZES)]
    points = [point(size, 100, 1) for size in SIZES]
    draw(axes[:, 1], areas, points, [1] * len(SIZES), "megapixels (100 owners)")
    points = [point("800x1216", 100, batch) for batch in BATCHES]
    draw(axes[:, 2], list(BATCHES), points, list(BATCHES), "images at once (100 owners, 800x1216)")
    axes[1, 2].set_xticks(BATCHES)
    for row, title in zip(axes, ("seconds per image", "ratio to torchvision in the same run"), strict=True):
        row[0].set_ylabel(title)
        row[0].set_ylim(bottom=0)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    typer.run(main)
