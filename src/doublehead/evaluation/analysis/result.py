"""Result of an analysis."""

from __future__ import annotations

from dataclasses import dataclass

from doublehead.common.categories import Categories
from doublehead.evaluation.analysis.look import ModelAnalysis
from doublehead.evaluation.analysis.proposals import Object
from doublehead.evaluation.budget import Budget


@dataclass(frozen=True)
class Analysis:
    """Analysis of one or more models on one split."""

    models: list[ModelAnalysis]
    data: str
    split: str
    categories: Categories
    images: int
    objects: list[Object]
    windows: float  # around each object, on average
    budget: Budget
    seconds: float
