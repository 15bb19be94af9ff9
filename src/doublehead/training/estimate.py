"""An estimate before the first step: how long a run will take, where its time goes, and how much memory it needs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch

from doublehead.common.distribution import Distribution
from doublehead.config import TrainConfig
from doublehead.model.recompute import same_buffers
from doublehead.training.state import TrainingState
from doublehead.training.step import Batch, on_device

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

LEAST = 200
"""Steps from which a run gets an estimate: it costs three of them."""
PASSES = 3
"""Timed passes: the first warms up, and the fastest of the others counts, since other programs may interfere."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from one batch and one step. Seconds, bytes."""

    steps: int  # that are left
    forward: float  # of a step
    backward: float
    loading: float  # of a step's images, by one process
    workers: int  # loader processes; 0: the images of a step are loaded before it
    measured: int  # images of this process in all validations that are left
    images: int  # of this process in a step
    memory: float | None  # at the peak; None: not known on this system
    available: float | None  # of the GPU

    @property
    def waiting(self) -> float:
        """Seconds for which a step waits for its images."""
        if not self.workers:
            return self.loading
        return max(0.0, self.loading / self.workers - self.forward - self.backward)

    @property
    def training(self) -> float:
        """Seconds of all steps."""
        return self.steps * (self.forward + self.backward + self.waiting)

    @property
    def validation(self) -> float:
        """Seconds of all validations; an image is taken to need its loading and a forward pass."""
        image = max(self.forward, self.loading / self.workers) if self.workers else self.forward + self.loading
        return self.measured * image / self.images

    def lines(self) -> list[str]:
        """What to tell: time, where it goes, memory, and what to change where images are what takes longest."""
        step = self.forward + self.backward + self.waiting
        parts = {"forward": self.forward, "backward": self.backward, "waiting for images": self.waiting}
        shares = ", ".join(f"{name} {seconds / step:.0%}" for name, seconds in parts.items())
        said = [
            f"estimate: about {_span(self.training + self.validation)}, of which validation {_span(self.validation)}",
            f"  step: {step:.2f} s ({shares}), without the optimizer",
        ]
        if self.memory is not None:
            there = f" of {self.available / 1e9:.1f} GB" if self.available else ""
            said.append(f"  memory: about {self.memory / 1e9:.1f} GB{there}, without loader processes")
        if self.waiting > step / 4:
            said.append("  images come slower than the model takes them: raise data.workers")
        return said


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def estimate(
    settings: TrainConfig,
    state: TrainingState,
    processes: Distribution,
    autocast: torch.autocast,
    batches: Callable[[], Iterator[Batch]],
    workers: int,
    steps: int,
    measured: int,
) -> Estimate:
    """Measure one batch and one step, of which nothing stays: weights, statistics and random numbers are as before.

    Args:
        settings: how the model learns.
        state: what learns.
        processes: this process among those of the run.
        autocast: the context in which the model computes.
        batches: gives the run's next batches, loaded in this process.
        workers: loader processes of the run.
        steps: that are left.
        measured: images of this process in all validations that are left.
    """
    device, model = processes.device, state.model
    began = time.monotonic()
    with closing(batches()) as loaded:  # type: ignore[type-var]
        batch = next(loaded)
    loading = time.monotonic() - began
    learning_mode = model.training
    model.train()
    with same_buffers(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        passes = list[tuple[float, float]]()
        for _ in range(PASSES):
            began = _now(device)
            with autocast:
                losses = model(*on_device(*batch, device))
            total = torch.stack(list(losses.values())).sum()
            between = _now(device)
            total.backward()
            passes.append((between - began, _now(device) - between))
            model.zero_grad(set_to_none=True)
    model.train(learning_mode)
    forward, backward = min(passes[1:], key=sum)
    peak, parts = _peak(device), settings.accumulate
    return Estimate(
        steps,
        forward * parts,
        backward * parts,
        loading * parts,
        workers,
        measured,
        len(batch[0]) * parts,
        None if peak is None else peak + _optimizer_bytes(settings, state),
        torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _peak(device: torch.device) -> float | None:
    """The most memory used so far: tensors on CUDA, resident memory of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _optimizer_bytes(settings: TrainConfig, state: TrainingState) -> int:
    """What the optimizer will allocate with its first step: a momentum, or the two moments of AdamW."""
    if state.optimizer.state:
        return 0
    learning = sum(parameter.nbytes for group in state.optimizer.param_groups for parameter in group["params"])
    return learning * (2 if settings.optimizer == "adamw" else int(settings.momentum > 0))
