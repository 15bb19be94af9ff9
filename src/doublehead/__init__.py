"""Double-Head R-CNN: two-stage detectors with one head that classifies and one that localises."""

__version__ = "0.1.0"

from doublehead.common.errors import DoubleheadError
from doublehead.evaluation.evaluate import evaluate
from doublehead.inference.detections import Detections
from doublehead.inference.predictor import Predictor, load
from doublehead.training.start import resume, train

__all__ = ["Detections", "DoubleheadError", "Predictor", "evaluate", "load", "resume", "train"]
