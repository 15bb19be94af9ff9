"""Double-Head R-CNN: two-stage detectors with one head that classifies and one that localises."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from doublehead.common.errors import DoubleheadError

if TYPE_CHECKING:
    from doublehead.evaluation.evaluate import evaluate
    from doublehead.inference.detections import Detections
    from doublehead.inference.predictor import Predictor, load
    from doublehead.training.callbacks import Callback
    from doublehead.training.start import resume, train

__version__ = "0.2.0"

__all__ = ["Callback", "Detections", "DoubleheadError", "Predictor", "evaluate", "load", "resume", "train"]

_HOMES = {
    "Callback": "doublehead.training.callbacks",
    "Detections": "doublehead.inference.detections",
    "Predictor": "doublehead.inference.predictor",
    "evaluate": "doublehead.evaluation.evaluate",
    "load": "doublehead.inference.predictor",
    "resume": "doublehead.training.start",
    "train": "doublehead.training.start",
}
"""Imported when first used (PEP 562): torch alone takes seconds, which `doublehead --help` need not wait for."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
