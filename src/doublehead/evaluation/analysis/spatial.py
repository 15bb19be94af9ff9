"""Similarity of a head's outputs at the 7x7 positions of a proposal (paper, section 3.3 and figure 4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from doublehead.model.box_head import RESOLUTION

POSITIONS = RESOLUTION**2


@dataclass
class Correlation:
    """Cosine similarity between all pairs of positions, averaged over the added objects."""

    model: str
    branch: str | None  # None: the RoI features that branches are given
    of: str  # what is compared, in words
    matrix: np.ndarray  # (49, 49)
    objects: int

    @classmethod
    def empty(cls, model: str, branch: str | None, of: str) -> Correlation:
        """Create a correlation without objects."""
        return cls(model, branch, of, np.zeros((POSITIONS, POSITIONS)), 0)

    def add(self, vectors: Tensor) -> None:
        """Add N objects with a vector at each position, (N, 49, width)."""
        unit = torch.nn.functional.normalize(vectors.detach().double(), dim=2)
        total = self.matrix * self.objects + (unit @ unit.transpose(1, 2)).sum(0).cpu().numpy()
        self.objects += len(vectors)
        self.matrix = total / self.objects

    @property
    def mean(self) -> float:
        """Mean over all pairs of different positions."""
        return float(self.matrix[~np.eye(POSITIONS, dtype=bool)].mean())

    def by_distance(self) -> tuple[np.ndarray, np.ndarray]:
        """All distances between two positions, and the mean over the pairs at each distance."""
        distances, group = _distances()
        return distances, np.bincount(group, self.matrix.ravel()) / np.bincount(group)


def roi_features(rois: Tensor) -> Tensor:
    """Reshape RoI features by position: (N, C, 7, 7) to (N, 49, C)."""
    return rois.flatten(2).transpose(1, 2)


@cache
def _distances() -> tuple[np.ndarray, np.ndarray]:
    """All distances, and the index of the distance of each of the 49 x 49 pairs."""
    at = np.stack(np.divmod(np.arange(POSITIONS), RESOLUTION), 1)
    squares = ((at[:, None] - at[None]) ** 2).sum(2)
    values, group = np.unique(squares, return_inverse=True)
    return np.sqrt(values), group.ravel()
