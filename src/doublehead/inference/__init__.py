"""Inference with trained detectors: images in, `Detections` out."""
