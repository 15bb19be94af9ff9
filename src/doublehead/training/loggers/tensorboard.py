"""The recorder `tensorboard`: event files in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from doublehead.common.errors import require
from doublehead.data.images import read_image
from doublehead.training.loggers.common import finite

if TYPE_CHECKING:
    from doublehead.config import Config


class TensorBoard:
    """Writes scalars, pictures and the config to `tensorboard/`; `tensorboard --logdir runs` shows them.

    TensorBoard stores no files, so only the path of the best checkpoint is recorded.
    """

    def begin(self, config: Config, folder: Path, step: int, measured: int) -> None:  # noqa: D102
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        later = step + 1 if step else None  # hides what an interrupted run wrote after its last checkpoint
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=later)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        self.writer.add_text("config", "```\n" + text + "```", step)
        self.writer.flush()

    def losses(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        self._scalars(finite(values, "train"), step)

    def machine(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        self._scalars(finite(values, "machine"), step)

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        self._scalars(finite(values, "val"), step)
        self.writer.flush()

    def picture(self, step: int, name: str, path: Path) -> None:  # noqa: D102
        self.writer.add_image(name, np.asarray(read_image(path)), step, dataformats="HWC")

    def end(self, done: bool) -> None:  # noqa: D102
        best = self.folder / "best.safetensors"
        if done and best.exists():
            self.writer.add_text("checkpoint", str(best.absolute()))
        self.writer.close()

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
