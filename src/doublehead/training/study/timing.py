"""Time several runs fairly: all in one process, in turn, so that a drift of the machine hits all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import torch

WARM_UP = 2
"""Rounds before the clock starts: the first fills caches and compiles, the second settles memory."""

Workload = Callable[[], object]


def alternate(
    runs: Mapping[str, Workload], repeats: int, device: torch.device, advance: Workload
) -> dict[str, list[float]]:
    """Seconds of each run, round by round: A, B, C, A, B, C ..., after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM_UP + repeats):
        for name, run in runs.items():
            gc.collect()
            wait(device)
            began = time.perf_counter()
            run()
            wait(device)
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
            advance()
    return seconds


def wait(device: torch.device) -> None:
    """Until the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
