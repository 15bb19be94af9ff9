"""Analysis of how heads differ (paper, section 3), for any model and data; see docs/analysis.md."""

from doublehead.evaluation.analysis.analyze import analyze

__all__ = ["analyze"]
