"""The detector: images to detections. Independent of file formats and of the command line."""
