"""Progress of a run: speed, memory, losses, validation metrics, time left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from doublehead.config import TrainConfig
from doublehead.data.loader import Waited
from doublehead.training.metric import Metric
from doublehead.training.state import TrainingState

SMOOTHING = 0.1
"""Weight of the newest step in the displayed losses."""


class Progress:
    """Track the steps of a run.

    Args:
        settings: training settings.
        state: state of the run.
        batches: source of images.
        device: device of the model.
        per_epoch: steps per epoch.
        total: steps of the run.
        metric: metric that selects the best weights.
    """

    def __init__(
        self,
        settings: TrainConfig,
        state: TrainingState,
        batches: Waited[Any],
        device: torch.device,
        per_epoch: int,
        total: int,
        metric: Metric,
    ) -> None:
        self.settings, self.state, self.batches, self.device = settings, state, batches, device
        self.per_epoch, self.total, self.metric = per_epoch, total, metric
        self.began = (state.step, state.seconds)
        self.read = (state.step, state.seconds, batches.seconds)
        self.losses: dict[str, float] = {}
        self.last: float | None = None

    def machine(self) -> dict[str, float]:
        """Values for `Recorder.machine` since the last call, excluding validations."""
        step, seconds, waited = self.read
        self.read = (self.state.step, self.state.seconds, self.batches.seconds)
        took = max(self.state.seconds - seconds, 1e-9)
        found = {
            "images_per_second": (self.state.step - step) * self.settings.batch_size / took,
            "waiting": min(1.0, (self.batches.seconds - waited) / took),
        }
        return found | self._memory()

    def lines(self, losses: Mapping[str, float]) -> list[str]:
        """Lines to display after a step: speed, losses, metrics."""
        for name, value in losses.items():
            self.losses[name] = (1 - SMOOTHING) * self.losses.get(name, value) + SMOOTHING * value
        state, (step, seconds) = self.state, self.began
        took = max(state.seconds - seconds, 1e-9)
        epochs = f"epoch {state.step / self.per_epoch:.1f} of {self.total / self.per_epoch:.1f}"
        pace = [epochs, f"{(state.step - step) * self.settings.batch_size / took:.1f} images/s"]
        pace += [f"{self.batches.seconds / took:.0%} waiting for images"]
        pace += [f"{value:.1f} GB" for value in self._memory().values()]
        lines = ["  ".join(pace), "  ".join(f"{name} {value:.3f}" for name, value in self.losses.items())]
        if state.best >= 0:
            last = f"{self.metric.title} {self.last:.3f}  " if self.last is not None else ""
            lines.append(f"{last}best {self.metric.title} {state.best:.3f} at step {state.best_step}")
        return lines

    def _memory(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {}
        return {"memory_gb": torch.cuda.max_memory_allocated(self.device) / 1e9}
