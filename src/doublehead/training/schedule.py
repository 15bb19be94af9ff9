"""Learning-rate schedule. It depends on the step alone, so resuming needs no other state."""

from __future__ import annotations

import math

from doublehead.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Learning rate of a step (0 .. total - 1): linear warm-up, then tenfold drops or a half cosine to zero."""
    if config.schedule == "cosine":
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * step / total))
    else:
        rate = config.lr * 0.1 ** sum(step >= round(m * total) for m in config.milestones)
    if step < config.warmup_steps:
        rate *= config.warmup_start + (1 - config.warmup_start) * step / config.warmup_steps
    return rate
