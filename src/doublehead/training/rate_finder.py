"""`find-lr`: suggest a learning rate from the loss at rising rates (Smith 2017, section 3.3)."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from doublehead.common.console import Console
from doublehead.common.device import float32_by_default, pick_precision
from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError
from doublehead.common.faults import less_memory, told
from doublehead.common.files import whole
from doublehead.config import Config
from doublehead.data.check import read_for_training
from doublehead.evaluation.plots import rate_sweep
from doublehead.training.batches import batches_of
from doublehead.training.first_model import first_model, require_start
from doublehead.training.run import RunFolder
from doublehead.training.state import TrainingState
from doublehead.training.step import Stepper

BELOW, ABOVE = 1e-3, 1e2
"""Default bounds of the sweep, as multiples of `train.lr`."""
SMOOTHING = 0.9
DIVERGED = 3.0
"""The sweep ends when the smoothed loss exceeds its minimum by this factor."""
EARLY = 10
"""First steps, in which divergence is not checked."""
MARGIN = 3.0
"""Factor between the rate with the lowest smoothed loss, above which training diverges, and the suggestion."""


@dataclass(frozen=True)
class RateSweep:
    """Rates and losses of a sweep, by step."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]  # exponential moving average, corrected for its start
    diverged: bool

    @classmethod
    def of(cls, rates: Sequence[float], losses: Sequence[float]) -> RateSweep:
        """Build from rates and losses, up to the step at which losses diverge or are not finite."""
        smoothed: list[float] = []
        average, diverged = 0.0, False
        for step, loss in enumerate(losses, 1):
            if not math.isfinite(loss):
                diverged = True
                break
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            smoothed.append(average / (1 - SMOOTHING**step))
            if step > EARLY and smoothed[-1] > DIVERGED * min(smoothed):
                diverged = True
                break
        return cls(list(rates[: len(smoothed)]), list(losses[: len(smoothed)]), smoothed, diverged)

    @property
    def best(self) -> float:
        """The rate with the lowest smoothed loss."""
        return self.rates[self.smoothed.index(min(self.smoothed))]

    @property
    def suggested(self) -> float:
        """Suggested peak rate, rounded to two digits."""
        return float(f"{self.best / MARGIN:.1e}")

    def words(self) -> str:
        """The suggestion and its reliability, in one or two sentences."""
        said = (
            f"lowest smoothed loss at a rate of {self.best:.1e}; suggested, a third of it: --set "
            f"train.lr={self.suggested:g}"
        )
        place = self.smoothed.index(min(self.smoothed))
        if place < EARLY:
            return f"{said}. The loss has not fallen: start lower with --lowest"
        if not self.diverged and place >= len(self.rates) - EARLY:
            return f"{said}. The loss still falls at the last rate: go higher with --highest"
        return said

    def save(self, folder: Path) -> None:
        """Write sweep.csv.

        Raises:
            Fault: the file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / "sweep.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["lr", "loss", "smoothed"])
            columns = zip(self.rates, self.losses, self.smoothed, strict=True)
            lines.writerows([f"{value:.6g}" for value in row] for row in columns)


@float32_by_default()
def find_rate(
    config: Config, output: Path, steps: int = 100, lowest: float | None = None, highest: float | None = None
) -> RateSweep:
    """Train a temporary model for a few steps at rising rates; write sweep.csv and, with matplotlib, sweep.png.

    Everything except the rate is as in a run with the same config: initial weights, batches, augmentation, clipping and
    precision. The model is not saved.

    Args:
        config: config of the planned run.
        output: output folder; must not contain a run.
        steps: maximum steps; the sweep ends early if the loss diverges.
        lowest: first rate; None: a thousandth of `train.lr`.
        highest: rate of the last step; None: a hundred times `train.lr`.

    Raises:
        DoubleheadError: data, config, rates or folder are invalid, or several processes were started.
        Fault: memory ran out, or a loader process was lost.
    """
    settings = config.train
    lowest, highest = lowest or settings.lr * BELOW, highest or settings.lr * ABOVE
    if not 0 < lowest < highest:
        raise DoubleheadError(
            f"rates from {lowest:g} to {highest:g}: the first must be positive and lower than the last"
        )
    if Distribution.many():
        raise DoubleheadError("find-lr runs in one process: start it without torchrun")
    RunFolder(output).require_free()
    require_start(config)
    rates = [lowest * (highest / lowest) ** (step / max(1, steps - 1)) for step in range(steps)]
    processes = Distribution.start(settings.device, settings.timeout)
    try:
        with told(less_memory(settings, 1)):
            found = RateSweep.of(rates, _losses(config, rates, processes))
    finally:
        processes.stop()
    if not found.rates:
        raise DoubleheadError(f"the loss is not finite at a rate of {lowest:g}: check the data with `doublehead check`")
    found.save(output)
    try:
        rate_sweep(found.rates, found.losses, found.smoothed, found.suggested, output / "sweep.png")
    except DoubleheadError as error:
        Console().say(f"no picture drawn: {error}")
    return found


def _losses(config: Config, rates: Sequence[float], processes: Distribution) -> list[float]:
    """Loss of each step until the end of the sweep; NaN for a step with a non-finite loss or gradient."""
    data, console = config.data, Console()
    split, _ = read_for_training(data.path, data.train_split, data.val_split, data.split)
    precision = pick_precision(config.train.precision, processes.device)
    settings = config.train.model_copy(update={"ema": None, "skip_not_finite": 1})
    model = first_model(config, split, processes, console)
    state = TrainingState.create(model, settings, processes.device, precision is torch.float16)
    autocast = torch.autocast(processes.device.type, precision, enabled=precision is not None)
    losses: list[float] = []
    longer = 2 * len(rates)  # the last tenth of a run is augmented otherwise
    with (
        TemporaryDirectory() as bad,
        closing(batches_of(config, split, processes, 0, longer)) as batches,  # type: ignore[type-var]
        console.progress("sweeping", len(rates)) as advance,
    ):
        stepper = Stepper(
            settings,
            state,
            processes,
            rates.__getitem__,
            autocast,
            split.records,
            Path(bad),
            lambda text: None,
            lambda: False,
        )
        for step in range(len(rates)):
            taken = stepper.take(model, step, batches, math.inf)
            losses.append(taken.losses.get("loss", math.nan))
            advance()
            if RateSweep.of(rates, losses).diverged:
                break
    return losses
