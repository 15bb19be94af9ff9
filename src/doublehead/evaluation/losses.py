"""Validation losses, computed together with detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from doublehead.common.distribution import Distribution
from doublehead.data.records import Record
from doublehead.inference.detections import Detections
from doublehead.inference.predictor import Predictor


class SplitLosses:
    """Losses of a split's batches, which are divided among the processes.

    The seed for sampling proposals depends on the batch alone, so the mean is reproducible and independent of the
    number of processes.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, dict[str, float]]] = []  # id of the first image, how many, their losses

    def detect(self, predictor: Predictor, images: list[Tensor], records: Sequence[Record]) -> list[Detections]:
        """Detect objects as `Predictor.detect` does, and store the losses of the batch."""
        device = predictor.device
        targets = []
        for record in records:
            boxes, labels = record.training_boxes()
            targets.append({"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)})
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), predictor.autocast():
            torch.manual_seed(abs(records[0].image_id))
            results, losses = predictor.model.detect_with_losses(images, targets, predictor.options)
        values = torch.stack(list(losses.values())).tolist()
        self.batches.append((records[0].image_id, len(records), dict(zip(losses, values, strict=True))))
        return [predictor.as_detections(result) for result in results]

    def mean(self, processes: Distribution) -> dict[str, float]:
        """Mean over the images of all processes: the total as `loss`, then each part by name."""
        batches = sorted(processes.gather(self.batches), key=lambda batch: batch[0])
        images = sum(count for _, count, _ in batches)
        names = batches[0][2]
        parts = {name: sum(count * losses[name] for _, count, losses in batches) / images for name in names}
        return {"loss": sum(parts.values())} | parts
