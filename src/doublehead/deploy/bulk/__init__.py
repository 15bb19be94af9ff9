"""Many images: where they come from, and detections of them that no stop loses."""
