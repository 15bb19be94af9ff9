"""Models that were trained elsewhere."""

PROGRAMS = ("mmdetection", "detectron2", "authors", "torchvision")
"""Each is a module of this folder, and its `FORMATS` are what it writes."""
