"""A trained detector at work: images in, `Detections` out."""
