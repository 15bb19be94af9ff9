"""Content of `doublehead models`: presets and published models with their cost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from doublehead.common.errors import DoubleheadError
from doublehead.common.files import whole
from doublehead.model import presets
from doublehead.model.cost import TYPICAL_OWNERS, Cost, cost
from doublehead.model.interop.catalogue import PUBLISHED


@dataclass(frozen=True)
class Entry:
    """A preset or published model."""

    name: str
    cost: Cost | None  # None: its backbone needs a package that is not installed
    ap: float | None = None  # on COCO val2017, as published
    licence: str | None = None  # of the published weights
    url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values, without unknown ones."""
        values = asdict(self)
        values |= values.pop("cost") or {}
        return {key: value for key, value in values.items() if value is not None}


def listed_presets() -> list[Entry]:
    """List all presets."""
    return [Entry(name, _preset_cost(name)) for name in presets.PRESETS]


def listed_published() -> list[Entry]:
    """List all published models, downloaded or not."""
    return [
        Entry(name, cost(entry.config, entry.classes), entry.ap, entry.licence, entry.url)
        for name, entry in PUBLISHED.items()
    ]


def presets_table(entries: list[Entry]) -> Table:
    """Table of presets with parameters and GFLOPs."""
    table = _table(
        ("model", "M", "GFLOPs", "all", "input"),
        f"M: millions of parameters, for 80 classes; GFLOPs where a branch that only regresses sees {TYPICAL_OWNERS} "
        "proposals, or all",
    )
    for entry in entries:
        if entry.cost is None:
            table.add_row(entry.name, "", "", "", "needs the extra backbones")
            continue
        height, width = entry.cost.size
        table.add_row(entry.name, *_figures(entry.cost), f"{entry.cost.gflops_all:.0f}", f"{height}x{width}")
    return table


def published_table(entries: list[Entry]) -> Table:
    """Table of published models with AP, cost and licence."""
    table = _table(
        ("published model", "AP", "M", "GFLOPs", "licence"),
        "AP on COCO val2017, as published; M: millions of parameters; downloaded the first time a model is named",
    )
    table.columns[-1].no_wrap = True
    for entry in entries:
        assert entry.cost is not None
        table.add_row(entry.name, f"{entry.ap:.1f}", *_figures(entry.cost), entry.licence)
    return table


def write_json(path: Path, listed: list[Entry], published: list[Entry]) -> None:
    """Write the content of both tables as JSON, with more digits."""
    content = {"presets": [e.to_json() for e in listed], "published": [e.to_json() for e in published]}
    with whole(path) as file:
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _preset_cost(name: str) -> Cost | None:
    try:
        return cost(presets.preset(name))
    except DoubleheadError:
        return None


def _figures(found: Cost) -> tuple[str, str]:
    return f"{found.parameters / 1e6:.1f}", f"{found.gflops:.0f}"


def _table(columns: tuple[str, ...], caption: str) -> Table:
    table = Table(*columns, caption=caption, box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.columns[0].no_wrap = True
    return table
