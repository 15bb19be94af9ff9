"""COCO metrics and curves of detections against annotations."""
