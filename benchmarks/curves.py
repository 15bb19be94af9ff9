"""How the cost grows: with owners of candidate detections, image area and batch, as one picture.

    python benchmarks/curves.py docs/images/performance.png

Every point is a `doublehead benchmark inference` of its own, whose JSON is kept beside the picture's name in
benchmarks/results; a point that is there is not measured again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from doublehead.benchmarks.inference import inference
from doublehead.benchmarks.measure import Settings
from doublehead.benchmarks.report import write_json

RESULTS = Path(__file__).parent / "results"
CASES = {
    "torchvision Faster R-CNN": ("#7f7f7f", "torchvision Faster R-CNN"),
    "double-head as others run it": ("#d62728", "Double-Head, all proposals through both heads"),
    "double-head staged": ("#1f77b4", "Double-Head staged"),
    "double-head staged, bf16": ("#2ca02c", "Double-Head staged, bf16"),
}
OWNERS = (10, 100, 300, 1000)
SIZES = ("480x640", "640x960", "800x1216", "800x1344")
BATCHES = (1, 2, 4)
REPEATS = 5


def point(size: str, owners: int, batch: int) -> dict[str, Any]:
    """The figures of one configuration, measured now or before."""
    file = RESULTS / f"inference-{size}-owners{owners}-batch{batch}.json"
    if not file.exists():
        settings = Settings(size, batch, REPEATS, 2, "cpu", tuple(CASES)[1:])
        write_json(inference(settings, owners).to_json(), file)
    return {case["name"]: case for case in json.loads(file.read_text())["cases"]}


def draw(axes: Any, xs: list[float], points: list[dict[str, Any]], per: list[int], label: str) -> None:
    """One line for each case: seconds per image."""
    for name, (colour, title) in CASES.items():
        ys = [p[name]["seconds"] / images for p, images in zip(points, per, strict=True)]
        axes.plot(xs, ys, marker="o", color=colour, label=title)
    axes.set_xlabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def main(picture: Path) -> None:
    """Measure what is missing, and draw."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True)
    points = [point("800x1216", owners, 1) for owners in OWNERS]
    draw(left, list(OWNERS), points, [1] * len(points), "proposals that own a candidate detection")
    left.set_xscale("log")
    left.set_ylabel("seconds per image")
    areas = [h * w / 1e6 for h, w in (map(int, size.split("x")) for size in SIZES)]
    draw(middle, areas, [point(size, 100, 1) for size in SIZES], [1] * len(SIZES), "megapixels (100 owners)")
    draw(
        right, list(BATCHES), [point("800x1216", 100, batch) for batch in BATCHES], list(BATCHES), "batch (100 owners)"
    )
    right.set_xticks(BATCHES)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
