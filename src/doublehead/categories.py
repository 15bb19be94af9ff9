"""The classes of a dataset or of a model: what both speak of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Categories:
    """Class names and the dataset's own ids. Label k (1..C) inside the model is `names[k - 1]`, `ids[k - 1]`."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def pairs(self) -> tuple[tuple[str, int], ...]:
        """Name and id of each."""
        return tuple(zip(self.names, self.ids, strict=True))
