"""Models that were trained elsewhere."""

PROGRAMS = ("mmdetection", "authors", "torchvision")
"""Each is a module of this folder, and its `FORMATS` are what it writes."""
