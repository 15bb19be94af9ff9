"""Double-Head R-CNN: two-stage detectors with one head that classifies and one that localises."""

__version__ = "0.1.0"
