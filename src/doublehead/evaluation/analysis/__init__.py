"""Why the heads differ (paper, section 3), on any model and any data; see docs/analysis.md."""

from doublehead.evaluation.analysis.analyze import analyze

__all__ = ["analyze"]
