"""Datasets: from files to batches. Independent of models."""
