"""Callbacks: code of a user's own that a run calls, and that may change or stop it."""

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
    """A run as its callbacks see it.

    Attributes:
        config: of the run.
        folder: of the run.
        total: optimiser steps of the whole run.
        stopping: why it is to stop; empty: it is not.
    """

    def __init__(self, config: Config, folder: Path, state: TrainingState, total: int, per_epoch: int) -> None:
        self.config, self.folder, self.total = config, folder, total
        self.stopping = ""
        self._state, self._per_epoch = state, per_epoch

    @property
    def model(self) -> Detector:
        """The model that learns."""
        return self._state.model

    @property
    def average(self) -> Detector | None:
        """The moving average of its weights, if there is one (`train.ema`)."""
        return self._state.average.module if self._state.average is not None else None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its optimiser, with every parameter that learns when the run starts."""
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
        """End the run after this step, with a last validation; one process is enough to ask.

        Args:
            why: said on the console and kept in environment.json.
        """
        self.stopping = why


class Callback:
    """Base class of callbacks; override what is needed. Every process of a run calls its own.

    A resumed run calls `begin` anew, with `run.step` where it continues: what a callback does there must depend on the
    step alone if the resumed run is to end as one that was never stopped.
    """

    def begin(self, run: Run) -> None:
        """Before the first step of a run, or of the rest of a resumed one."""

    def step(self, run: Run, losses: Mapping[str, float]) -> None:
        """After each step, with its losses by name; empty if the step was skipped since one was not finite."""

    def validation(self, run: Run, figures: Mapping[str, float]) -> None:
        """After each validation, with its figures and losses as in validation.csv."""

    def end(self, run: Run, done: bool) -> None:
        """After the last step (done), or where the run was interrupted or failed."""


class CallbackError(DoubleheadError):
    """A callback raised an error."""


class Callbacks:
    """The callbacks of a run, called in order.

    Args:
        callbacks: objects with some of the methods of `Callback`.
        run: what they are given.
        processes: which agree on stopping.

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
        """Let all processes stop where one is to."""
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
