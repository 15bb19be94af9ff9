"""How a run fares while it trains: speed, memory, losses, what was measured, time left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from doublehead.config import TrainConfig
from doublehead.data.loader import Waited
from doublehead.training.metric import Metric
from doublehead.training.state import TrainingState

SMOOTHING = 0.1
"""Share of the newest step in the losses that people see."""


class Progress:
    """Follows the steps of a run.

    Args:
        settings: how the model learns.
        state: what learns.
        batches: where images come from.
        device: where it computes.
        per_epoch: steps of an epoch.
        total: steps of the run.
        metric: what decides which weights are the best.
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
        """The figures of `Recorder.machine` since they were last read; validations are not counted."""
        step, seconds, waited = self.read
        self.read = (self.state.step, self.state.seconds, self.batches.seconds)
        took = max(self.state.seconds - seconds, 1e-9)
        found = {
            "images_per_second": (self.state.step - step) * self.settings.batch_size / took,
            "waiting": min(1.0, (self.batches.seconds - waited) / took),
        }
        return found | self._memory()

    def lines(self, losses: Mapping[str, float]) -> list[str]:
        """What a person wants to see after a step: pace, losses, figures."""
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
