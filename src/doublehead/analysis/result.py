"""What an analysis finds."""

from __future__ import annotations

from dataclasses import dataclass

from doublehead.analysis.look import ModelAnalysis
from doublehead.analysis.proposals import Budget, Object
from doublehead.categories import Categories


@dataclass(frozen=True)
class Analysis:
    """What was found of some models on one split."""

    models: list[ModelAnalysis]
    data: str
    split: str
    categories: Categories
    images: int
    objects: list[Object]
    windows: float  # around each object, on average
    budget: Budget
    seconds: float
