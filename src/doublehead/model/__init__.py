"""Images to detections. Knows no files and no command line."""
