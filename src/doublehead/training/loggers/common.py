"""What the loggers share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path


def finite(values: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Values under names such as `val/AP`; those that are not finite, which not every program stores, are left out."""
    return {f"{prefix}/{name}": value for name, value in values.items() if math.isfinite(value)}


class Identity:
    """The name by which a program knows a run, kept in the run folder so that a resumed run continues it.

    Args:
        folder: of the run.
        program: whose name.
    """

    def __init__(self, folder: Path, program: str) -> None:
        self.path = folder / f"{program}.id"

    def read(self) -> str | None:
        """The name; None: the program does not know the run yet."""
        return self.path.read_text(encoding="utf-8").strip() if self.path.exists() else None

    def write(self, name: str) -> None:
        """Keep the name."""
        self.path.write_text(f"{name}\n", encoding="utf-8")
