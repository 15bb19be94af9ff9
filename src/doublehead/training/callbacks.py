"""Callbacks: user code that a run calls, and that may change or stop the run."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError
from doublehead.config import Config
from doublehead.model.detector import Detector
from doublehead.training.state import TrainingState

EVENTS = ("begin", "step", "validation", "end")


class Run:
    """View of a training run that is passed to its callbacks.

    Attributes:
        config: config of the run.
        folder: run folder.
        total: optimiser steps of the whole run.
        stopping: reason for stopping, or "" if the run continues.
    """

    def __init__(self, config: Config, folder: Path, state: TrainingState, total: int, per_epoch: int) -> None:
        self.config, self.folder, self.total = config, folder, total
        self.stopping = ""
        self._state, self._per_epoch = state, per_epoch

    @property
    def model(self) -> Detector:
        """The model being trained."""
        return self._state.model

    @property
    def average(self) -> Detector | None:
        """The exponential moving average of the model, or None without `train.ema`."""
        return self._state.average.module if self._state.average is not None else None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser. It holds the parameters that were trainable when the run started."""
        return self._state.optimizer

    @property
    def step(self) -> int:
        """Finished optimiser steps."""
        return self._state.step

    @property
    def epoch(self) -> float:
        """Finished epochs."""
        return self._state.step / self._per_epoch

    def stop(self, why: str) -> None:
        """Stop the run after this step, following a final validation.

        In distributed training, a call in any process stops all of them.

        Args:
            why: reason, printed and stored in environment.json.
        """
        self.stopping = why


class Callback:
    """Base class of callbacks. Override the methods you need; each process calls its own callbacks.

    A resumed run calls `begin` again, with `run.step` set to the step it continues from. For a resumed run to match an
    uninterrupted one, the state that `begin` sets up must depend on `run.step` alone.
    """

    def begin(self, run: Run) -> None:
        """Called before the first step of a new or resumed run."""

    def step(self, run: Run, losses: Mapping[str, float]) -> None:
        """Called after each step with its losses by name, or with {} if a non-finite loss caused it to be skipped."""

    def validation(self, run: Run, figures: Mapping[str, float]) -> None:
        """Called after each validation with its metrics and losses, named as in validation.csv."""

    def end(self, run: Run, done: bool) -> None:
        """Called after the last step (`done` is True), or when the run is interrupted or fails (False)."""


class CallbackError(DoubleheadError):
    """A callback raised an error."""


class Callbacks:
    """The callbacks of a run, called in order.

    Args:
        callbacks: objects with at least one method of `Callback`.
        run: the view passed to each callback.
        processes: the processes of the run, which stop together.

    Raises:
        DoubleheadError: an object has none of these methods.
    """

    def __init__(self, callbacks: Sequence[Any], run: Run, processes: Distribution) -> None:
        for callback in callbacks:
            if isinstance(callback, type) or not any(callable(getattr(callback, event, None)) for event in EVENTS):
                raise DoubleheadError(
                    f"callbacks: {callback!r} is not a callback; give an object with a method begin, step, validation "
                    "or end, such as one of a subclass of doublehead.Callback"
                )
        self.callbacks, self.run, self.processes = callbacks, run, processes

    def __bool__(self) -> bool:
        return bool(self.callbacks)

    def begin(self) -> None:  # noqa: D102
        self._tell("begin")
        self._agree()

    def step(self, losses: Mapping[str, float]) -> None:  # noqa: D102
        self._tell("step", losses)
        self._agree()

    def validation(self, figures: Mapping[str, float]) -> None:  # noqa: D102
        self._tell("validation", figures)
        self._agree()

    def end(self, done: bool) -> None:  # noqa: D102
        self._tell("end", done)

    def _agree(self) -> None:
        """Stop all processes if a callback of any of them asked to."""
        if self.callbacks:
            self.run.stopping = next(filter(None, self.processes.gather([self.run.stopping])), "")

    def _tell(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            method: Callable[..., object] | None = getattr(callback, event, None)
            if method is None:
                continue
            try:
                method(self.run, *arguments)
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                raise CallbackError(
                    f"callback {type(callback).__name__} failed in `{event}` after step {self.run.step} "
                    f"({type(error).__name__}: {error}; {place.filename}, line {place.lineno})"
                ) from error
