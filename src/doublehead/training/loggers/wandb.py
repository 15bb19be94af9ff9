"""The recorder `wandb`: Weights & Biases, online or offline."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublehead.common.errors import require
from doublehead.training.loggers.common import Identity, finite

if TYPE_CHECKING:
    from doublehead.config import Config


class WeightsAndBiases:
    """Sends scalars, pictures, the config and the best checkpoint to Weights & Biases.

    Its own environment variables apply (WANDB_PROJECT, WANDB_MODE, WANDB_API_KEY ...). Without an API key the run is
    recorded offline in `wandb/` of the run folder; `wandb sync` uploads it.
    """

    def begin(self, config: Config, folder: Path, step: int, measured: int) -> None:  # noqa: D102
        self.wandb: Any = require("wandb", "wandb")
        self.folder = folder
        identity = Identity(folder, "wandb")
        name = identity.read() or uuid.uuid4().hex[:12]
        identity.write(name)
        offline = "WANDB_MODE" not in os.environ and not self.wandb.login(prompt=False, verify=False)
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", "doublehead"),
            name=os.environ.get("WANDB_NAME", folder.name),
            id=name,
            resume="allow",
            dir=str(folder),
            config=config.model_dump(mode="json"),
            mode="offline" if offline else None,
            settings=self.wandb.Settings(console="off", quiet=True),
        )
        # A step of our own: Weights & Biases drops rows of steps that it has seen, which a resumed run repeats.
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")

    def losses(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        self.run.log({"step": step, "epoch": epoch, **finite(values, "train")})

    def machine(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        self.run.log({"step": step, **finite(values, "machine")})

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        self.run.log({"step": step, "epoch": epoch, **finite(values, "val")})

    def picture(self, step: int, name: str, path: Path) -> None:  # noqa: D102
        self.run.log({"step": step, name: self.wandb.Image(str(path))})

    def end(self, done: bool) -> None:  # noqa: D102
        best = self.folder / "best.safetensors"
        if done and best.exists():
            artifact = self.wandb.Artifact(f"{self.run.id}-best", type="model")
            artifact.add_file(str(best))
            self.run.log_artifact(artifact)
        self.run.finish(exit_code=0 if done else 1)
