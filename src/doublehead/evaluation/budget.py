"""Numbers of images, objects and windows for `analyze`."""

from __future__ import annotations

from dataclasses import dataclass

from doublehead.common.errors import DoubleheadError

BINS = 20
"""Number of equal ranges of IoU."""


@dataclass(frozen=True)
class Budget:
    """Numbers of images, objects and windows; None: all."""

    images: int | None
    objects: int | None
    windows: int  # around each object, all ranges together

    def __post_init__(self) -> None:
        if self.windows < BINS:
            raise DoubleheadError(f"{self.windows} windows: give at least {BINS}, one for each range of IoU")

    def changed(self, images: int | None, objects: int | None, windows: int | None) -> Budget:
        """Return a budget with the given numbers replaced."""
        return Budget(images or self.images, objects or self.objects, windows or self.windows)


QUICK = Budget(images=500, objects=200, windows=400)
FULL = Budget(images=None, objects=None, windows=14_000)
"""The paper's numbers."""
