"""Detectors where they run: exported, served, over many images."""
