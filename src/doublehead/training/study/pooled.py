"""Differences pooled over datasets, by a nested bootstrap of datasets, seeds and images."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from rich.table import Table

from doublehead.training.study.summary import DRAWS, IOUS, LEVEL, Difference, Summary, draw_by_iou


@dataclass(frozen=True)
class PooledRow:
    """Difference of a row's AP to the baseline's, averaged over datasets."""

    name: str
    each: list[Difference]  # of each dataset
    difference: Difference  # their mean; its interval holds for datasets, seeds and images drawn anew
    same_data: Difference  # the same mean; its interval holds for these datasets
    by_iou: list[Difference]  # as `difference`, at each of COCO's thresholds


@dataclass(frozen=True)
class Pooled:
    """Comparison pooled over several datasets."""

    NAME: ClassVar = "pooled"

    baseline: str
    data: list[str]  # names of the datasets
    aps: dict[str, list[float]]  # row -> AP at each threshold, mean over datasets
    rows: list[PooledRow]  # all but the baseline

    def lines(self) -> list[list[str]]:
        """Header and cells in words, in per cent."""
        header = [f"AP - {self.baseline}", *self.data, "mean", "mean, these datasets"]
        return [header, *([r.name, *map(str, r.each), str(r.difference), str(r.same_data)] for r in self.rows)]

    def table(self) -> Table:
        """For the console."""
        header, *rows = ([line[0], *line[-2:]] for line in self.lines())
        table = Table(*header, caption=self._title())
        for row in rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """A table, with what it shows above it."""
        header, *rows = self.lines()
        lines = [header, ["---"] * len(header), *rows]
        return f"{self._title()}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def _title(self) -> str:
        return (
            f"{len(self.data)} datasets; AP in %, with {LEVEL:.0%} intervals: "
            "of `mean` over datasets, seeds and images, of the others over seeds and images"
        )

    def save(self, folder: Path) -> None:
        """Write pooled.md and pooled.csv."""
        (folder / "pooled.md").write_text(self.markdown(), encoding="utf-8")
        with (folder / "pooled.csv").open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["row", "iou", "difference", "low", "high"])
            for row in self.rows:
                lines.writerow([row.name, "0.50:0.95", *astuple(row.difference)])
                lines.writerows([row.name, f"{at:.2f}", *astuple(d)] for at, d in zip(IOUS, row.by_iou, strict=True))

    def draw(self, folder: Path) -> None:
        """Draw pooled.png, AP and the differences against the IoU threshold.

        Raises:
            DoubleheadError: matplotlib is not installed.
        """
        apart = {row.name: row.by_iou for row in self.rows}
        by_iou = {name: (ap, apart.get(name, [])) for name, ap in self.aps.items()}
        draw_by_iou(by_iou, self.baseline, folder / f"{self.NAME}.png")


def pool(found: Mapping[Path, Summary]) -> Pooled:
    """Pool the summaries of the same plan on several datasets, by folders with the names of these."""
    summaries = list(found.values())
    rng = np.random.default_rng(0)
    number = len(summaries)
    slots = rng.integers(number, size=(DRAWS, number))  # which datasets
    rounds = rng.integers(DRAWS, size=(DRAWS, number))  # and which drawing of their seeds and images

    def row(place: int) -> PooledRow:
        own = [summary.rows[place] for summary in summaries]
        drawn = np.stack([row.drawn for row in own])  # (datasets, 10, DRAWS)
        anew = np.mean([drawn[slots[:, s], :, rounds[:, s]] for s in range(number)], axis=0)  # (DRAWS, 10)
        exact = np.mean([[d.mean for d in row.differences] for row in own], axis=0)
        return PooledRow(
            own[0].name,
            [row.difference for row in own if row.difference],
            Difference.of(exact.mean(), anew.mean(1)),
            Difference.of(exact.mean(), drawn.mean((0, 1))),
            [Difference.of(*at) for at in zip(exact, anew.T, strict=True)],
        )

    rows = summaries[0].rows
    return Pooled(
        summaries[0].baseline,
        [folder.name for folder in found],
        {row.name: np.mean([s.rows[i].by_iou for s in summaries], axis=0).tolist() for i, row in enumerate(rows)},
        [row(i) for i, r in enumerate(rows) if r.difference],
    )
