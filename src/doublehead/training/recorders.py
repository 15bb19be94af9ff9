"""Recorders: objects that write the events of a run to files or send them to other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from doublehead.common.tables import imported

if TYPE_CHECKING:
    from doublehead.config import Config


class Recorder(Protocol):
    """Interface of recorders. Only the first process of a run has recorders.

    `step` is the number of finished optimiser steps; `epoch` is the same in epochs.
    """

    def begin(self, config: Config, folder: Path, step: int, measured: int) -> None:
        """Start recording a new or resumed run. Events after `step` will be repeated.

        Args:
            config: config of the run.
            folder: run folder.
            step: first step; 0 for a new run.
            measured: step of the last validation; -1 if none.
        """
        ...

    def losses(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Called every `train.log_every` steps with the learning rate `lr`, the total `loss`, and each part by name."""
        ...

    def machine(self, step: int, values: Mapping[str, float]) -> None:
        """Called as often as `losses` with performance figures. A resumed run does not repeat them.

        They are `images_per_second`, `waiting` (the share of time spent waiting for images), and on CUDA `memory_gb`,
        the peak memory so far.
        """
        ...

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Called after each validation with metrics by name, such as AP, and validation losses."""
        ...

    def picture(self, step: int, name: str, path: Path) -> None:
        """Called with a picture of the run, such as `predictions`, and its file."""
        ...

    def end(self, done: bool) -> None:
        """Called when the run is complete (`done`), interrupted or failed."""
        ...


@dataclass(frozen=True)
class RecorderRow:
    """A recorder that `train.recorders` can name.

    Args:
        recorder: callable without arguments that returns the Recorder; or its import path, as `package.module:name`.
        required: whether its failure stops the run. The failure of any other is reported once, and the run continues.
        pictures: whether it receives predictions after each validation, not only at the end.
    """

    recorder: str | Callable[[], Recorder]
    required: bool = False
    pictures: bool = False


RECORDERS: dict[str, RecorderRow] = {
    "csv": RecorderRow("doublehead.training.csv_files:CSVFiles", required=True),
    "tensorboard": RecorderRow("doublehead.training.loggers.tensorboard:TensorBoard", pictures=True),
    "wandb": RecorderRow("doublehead.training.loggers.wandb:WeightsAndBiases", pictures=True),
    "mlflow": RecorderRow("doublehead.training.loggers.mlflow:MLflow", pictures=True),
}
LOGGERS = tuple(name for name, row in RECORDERS.items() if not row.required)
"""Recorders that `--log` accepts."""


class Recorders:
    """The recorders of a run, called together.

    Args:
        names: rows of RECORDERS.
        say: called with a message if a recorder fails.
    """

    def __init__(self, names: Sequence[str], say: Callable[[str], object]) -> None:
        self.say = say
        self._active: dict[str, Recorder] = {}
        for name in names:
            self._guarded(name, self._open, name)

    @property
    def want_pictures(self) -> bool:
        """Whether a recorder receives pictures after each validation."""
        return any(RECORDERS[name].pictures for name in self._active)

    def begin(self, config: Config, folder: Path, step: int, measured: int) -> None:
        """As `Recorder.begin`. The other methods also correspond to those of `Recorder`.

        Raises:
            Fault: a required recorder cannot write.
        """
        self._tell("begin", config, folder, step, measured)

    def losses(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        self._tell("losses", step, epoch, values)

    def machine(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        self._tell("machine", step, values)

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        self._tell("metrics", step, epoch, values)

    def picture(self, step: int, name: str, path: Path) -> None:  # noqa: D102
        self._tell("picture", step, name, path)

    def end(self, done: bool) -> None:  # noqa: D102
        self._tell("end", done)

    def _tell(self, what: str, *arguments: Any) -> None:
        for name, recorder in list(self._active.items()):
            self._guarded(name, getattr(recorder, what), *arguments)

    def _open(self, name: str) -> None:
        self._active[name] = imported(RECORDERS[name].recorder)()

    def _guarded(self, name: str, work: Callable[..., object], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:
            if RECORDERS[name].required:
                raise
            self._active.pop(name, None)
            cause = " ".join(str(error).split()) or "no message"
            self.say(f"recorder {name} failed ({type(error).__name__}: {cause}); the run continues without it")
