"""Trained detectors where they are used."""
