"""Everything a run must remember to go on as if it had never stopped: as tensors and plain numbers, without pickle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError
from doublehead.config import Config, TrainConfig
from doublehead.model.checkpoint import Checkpoint, save_checkpoint
from doublehead.model.detector import Detector

Tensors = list[Tensor] | tuple[Tensor, ...]


@dataclass
class TrainingState:
    """The model that learns, its average, the optimiser, and how far the run has come.

    Random numbers need no memory: each step seeds its own (see `loop.py`), and so does each augmented image.
    """

    model: Detector
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    measured: int = -1  # the step last measured on the val split
    best: float = -1.0  # the highest AP so far
    seconds: float = 0.0  # of training, over all resumptions
    skipped: int = 0  # steps left out since their loss or gradient was not finite

    @classmethod
    def create(cls, model: Detector, config: TrainConfig, device: torch.device, fp16: bool) -> TrainingState:
        """The state before the first step."""
        average = AveragedModel(model, multi_avg_fn=warm_average(config.ema), use_buffers=True) if config.ema else None
        return cls(model, average, make_optimizer(model, config), torch.amp.GradScaler(device.type, enabled=fp16))

    @property
    def for_use(self) -> Detector:
        """The model to measure and to keep: the average where there is one."""
        return self.average.module if self.average is not None else self.model  # type: ignore[return-value]

    def save(
        self,
        path: Path,
        config: Config,
        categories: Categories,
        weights_only: bool = False,
        keep: Path | None = None,
    ) -> None:
        """Write the weights for use, and unless `weights_only` the state; `keep` as in `save_checkpoint`."""
        notes: dict[str, Any] = {"step": self.step, "best": self.best}
        if config.data.split:
            notes["split"] = config.data.split.model_dump()
        tensors: dict[str, Tensor] = {}
        if not weights_only:
            tensors = {f"model/{key}": value for key, value in self.model.state_dict().items()} if self.average else {}
            if self.average is not None:
                tensors["averaged"] = self.average.n_averaged
            optimizer = self.optimizer.state_dict()
            for index, values in optimizer["state"].items():
                tensors |= {f"optimizer/{index}/{k}": v for k, v in values.items() if isinstance(v, Tensor)}
            notes |= {"measured": self.measured, "seconds": self.seconds, "skipped": self.skipped}
            notes |= {"scaler": self.scaler.state_dict()}
        save_checkpoint(path, config.model, categories, self.for_use.state_dict(), notes, tensors, keep)

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Go back to what `save` wrote.

        Raises:
            DoubleheadError: the file holds no state of a run.
        """
        notes, tensors = checkpoint.notes, checkpoint.training
        if "measured" not in notes:
            raise DoubleheadError(f"{path}: holds weights, but no state of a run to resume")
        self.for_use.load_state_dict(checkpoint.weights)
        if self.average is not None:
            self.model.load_state_dict(_under(tensors, "model/"))
            self.average.n_averaged.copy_(tensors["averaged"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimizer/").items():
            index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if notes["scaler"]:
            self.scaler.load_state_dict(notes["scaler"])
        self.step, self.measured, self.best = notes["step"], notes["measured"], notes["best"]
        self.seconds, self.skipped = notes["seconds"], notes.get("skipped", 0)


def warm_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """A moving average whose decay grows to `decay`, as (1 + n) / (10 + n), so that it forgets the first weights."""

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        n = int(updates)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:  # counters
            torch._foreach_copy_(averaged, current)

    return update


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with the published decay on every weight, or AdamW with decay on matrices and kernels alone."""
    learning = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(learning, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, config.lr)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
