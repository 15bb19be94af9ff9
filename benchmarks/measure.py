"""How anything is measured: all cases in one process, in turn, so that a drift of the machine hits all alike."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError
from doublehead.training.study.timing import WARM_UP, Workload, alternate


@dataclass(frozen=True)
class BenchmarkSettings:
    """How to measure, the same for every case.

    Raises:
        DoubleheadError: the size is none.
    """

    size: str  # "height x width" in pixels, such as 800x1216
    batch: int = 1  # images that go through a model at once
    repeats: int = 7  # rounds; each measures every case once
    threads: int | None = None  # of torch on the CPU; None: its own choice
    device: str = "auto"
    cases: tuple[str, ...] = ()  # parts of the names of those wanted; empty: all

    def __post_init__(self) -> None:
        if min(self.shape) < 32:
            raise DoubleheadError(f"--size {self.size}: both sides must have 32 pixels or more")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        sides = re.fullmatch(r"(\d+)x(\d+)", self.size)
        if not sides:
            raise DoubleheadError(f"--size {self.size}: write height x width in pixels, such as 800x1216")
        return int(sides[1]), int(sides[2])

    @contextmanager
    def with_threads(self) -> Iterator[None]:
        """Compute on so many threads inside, on as many as before outside."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """One peer's figures."""

    name: str
    seconds: list[float]  # round by round
    counts: dict[str, float]  # per image, such as owners: what the time depends on
    peak_mb: float | None


def measure(
    runs: Mapping[str, Workload],
    counts: Mapping[str, dict[str, float]],
    settings: BenchmarkSettings,
    device: torch.device,
) -> list[Case]:
    """Time every run, then look at the memory each needs, which would disturb the timing.

    Args:
        runs: by the name of the case.
        counts: to be kept beside the figures of each case.
        settings: the number of rounds.
        device: where the runs compute.
    """
    console = Console()
    with _no_collection():
        with console.progress("measuring", (WARM_UP + settings.repeats) * len(runs)) as advance:
            seconds = alternate(runs, settings.repeats, device, advance)
        with console.progress("looking at memory", len(runs)) as advance:
            cases = []
            for name, run in runs.items():
                cases.append(Case(name, seconds[name], counts[name], peak_mb(run, device)))
                advance()
    return cases


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage in the middle of a run; gc.collect() between runs looks at theirs alone."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def peak_mb(run: Workload, device: torch.device) -> float | None:
    """Most memory held at once during a run above what was held before it, in 1e6 bytes.

    On CUDA that is tensors, on Linux resident memory; elsewhere None, for no high-water mark can be reset there.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        _give_back_freed_memory()
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS; man 5 proc_pid_clear_refs
        resident = _status_kb("VmRSS")
        run()
        return (_status_kb("VmHWM") - resident) * 1024 / 1e6
    except OSError:
        return None


def _give_back_freed_memory() -> None:
    """What earlier cases freed and the allocator keeps would be reused, and so hidden from the peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _status_kb(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if not found:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1])
