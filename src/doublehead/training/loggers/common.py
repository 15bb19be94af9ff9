"""Helpers of the loggers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path


def finite(values: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Prefix names, as in `val/AP`, and drop non-finite values, which not every program stores."""
    return {f"{prefix}/{name}": value for name, value in values.items() if math.isfinite(value)}


class Identity:
    """Id of a run in a tracking program, stored in the run folder so that a resumed run continues its entry.

    Args:
        folder: run folder.
        program: name of the program.
    """

    def __init__(self, folder: Path, program: str) -> None:
        self.path = folder / f"{program}.id"

    def read(self) -> str | None:
        """Read the id; None if the run has none yet."""
        return self.path.read_text(encoding="utf-8").strip() if self.path.exists() else None

    def write(self, name: str) -> None:
        """Store the id."""
        self.path.write_text(f"{name}\n", encoding="utf-8")
