"""Recorders: what follows a run and writes down, or sends away, what happens in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from doublehead.common.tables import imported

if TYPE_CHECKING:
    from doublehead.config import Config


class Recorder(Protocol):
    """What a recorder must be able to do. Only the first process of a run has recorders.

    `step` counts finished optimiser steps, `epoch` is the same in epochs.
    """

    def begin(self, config: Config, folder: Path, step: int, measured: int) -> None:
        """Begin, or continue a run that is resumed: whatever is known of later steps will come again.

        Args:
            config: of the run.
            folder: of the run.
            step: where it starts; 0 for a new run.
            measured: the last step measured on the val split; -1 if none.
        """
        ...

    def losses(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Every `train.log_every` steps: the rate as `lr`, the whole `loss`, and each part by its name."""
        ...

    def machine(self, step: int, values: Mapping[str, float]) -> None:
        """As often as `losses`: how the machine fares, which a resumed run does not repeat.

        `images_per_second`, `waiting` (the share of the time in which a step waited for images), and on CUDA
        `memory_gb`, the largest amount of memory used so far.
        """
        ...

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """After each measurement: the figures on the val split by name, such as AP, and the losses there."""
        ...

    def picture(self, step: int, name: str, path: Path) -> None:
        """A picture of the run, such as `predictions`, and the file that holds it."""
        ...

    def end(self, done: bool) -> None:
        """The run has come to its end (done), or was interrupted or failed."""
        ...


@dataclass(frozen=True)
class RecorderRow:
    """A recorder that `train.recorders` can name.

    Args:
        recorder: called without arguments, gives the Recorder; or where to import it from, as `package.module:name`.
        required: whether its failure ends the run; any other is said once, and the run continues without it.
        pictures: whether it takes a picture of predictions after each validation, and not only at the end.
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
"""What `--log` names."""


class Recorders:
    """The recorders of a run, told together.

    Args:
        names: rows of RECORDERS.
        say: told of a recorder that fails.
    """

    def __init__(self, names: Sequence[str], say: Callable[[str], object]) -> None:
        self.say = say
        self._active: dict[str, Recorder] = {}
        for name in names:
            self._guarded(name, self._open, name)

    @property
    def want_pictures(self) -> bool:
        """Whether one of them takes a picture after each validation."""
        return any(RECORDERS[name].pictures for name in self._active)

    def begin(self, config: Config, folder: Path, step: int, measured: int) -> None:
        """As `Recorder.begin`, and so are the others.

        Raises:
            Fault: a recorder that the run requires cannot write.
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
