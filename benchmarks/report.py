"""What was measured, as a table and as JSON."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from rich import box
from rich.table import Table

import doublehead
from benchmarks.measure import Case


@dataclass(frozen=True)
class Report:
    """A whole benchmark; the first case is the one that all others are compared with."""

    command: str
    settings: dict[str, Any]
    versions: dict[str, Any]
    cases: list[Case]
    shown: tuple[str, ...]  # counts that the table has a column for; all are in the JSON

    def to_json(self) -> dict[str, Any]:
        """Settings, versions, and per case the median and spread of seconds and of their ratios to the first."""
        return {
            "command": self.command,
            "settings": self.settings,
            "versions": self.versions,
            "cases": [self._figures(case) for case in self.cases],
        }

    def table(self) -> Table:
        """A row for each case."""
        table = figures_table("case", ("seconds", "ratio", "min..max", *self.shown, "peak MB"), self.versions)
        for row in map(self._figures, self.cases):
            table.add_row(
                row["name"],
                f"{row['seconds']:.3f}",
                f"{row['ratio']:.2f}",
                f"{row['seconds_min']:.3f}..{row['seconds_max']:.3f}",
                *(f"{row[count]:g}" for count in self.shown),
                "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
            )
        return table

    def _figures(self, case: Case) -> dict[str, Any]:
        ratios = ratios_to(self.cases[0].seconds, case.seconds)
        return {
            "name": case.name,
            "seconds": median(case.seconds),
            "ratio": median(ratios),
            "seconds_min": min(case.seconds),
            "seconds_max": max(case.seconds),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            **case.counts,
            "peak_mb": case.peak_mb,
        }


def figures_table(first: str, columns: Sequence[str], versions: Mapping[str, Any]) -> Table:
    """A table without rows: the first column for names, the others for figures, and below what it ran on."""
    caption = ", ".join(f"{key} {value}" for key, value in versions.items() if value is not None)
    table = Table(first, box=box.SIMPLE, caption=caption)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right")
    return table


def ratios_to(first: Sequence[float], own: Sequence[float]) -> list[float]:
    """Ratios within a round, of which the median is then taken: what slows a whole round changes none of them."""
    return [value / beside for value, beside in zip(own, first, strict=True)]


def versions(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    return {
        "doublehead": doublehead.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write figures to a file, in a new folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()
