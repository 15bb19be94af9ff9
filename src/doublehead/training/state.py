"""State of a run for exact resuming, stored as tensors and plain numbers, without pickle."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError
from doublehead.config import Config, TrainConfig
from doublehead.model.checkpoint import Checkpoint, save_checkpoint
from doublehead.model.detector import Detector

HALVINGS = 5
"""Consecutive steps that an fp16 scaler may skip to find its scale: from 65536 down to 2048."""


@dataclass
class TrainingState:
    """The model in training, its average, the optimiser, and the progress of the run.

    Random generators have no state to store: each step (see `loop.py`) and each augmented image has its own seed.
    """

    model: Detector
    average: MovingAverage | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    measured: int = -1  # the step last measured on the val split
    best: float = -1.0  # the best value of `train.metric` so far; below 0: none
    best_step: int = -1  # the step of these weights
    stale: int = 0  # measurements since then
    seconds: float = 0.0  # of training, over all resumptions
    skipped: int = 0  # steps left out since their loss or gradient was not finite
    halvings: int = 0  # steps in a row that the scaler has skipped, which do not count as such

    @classmethod
    def create(cls, model: Detector, config: TrainConfig, device: torch.device, fp16: bool) -> TrainingState:
        """Create the state before the first step."""
        average = MovingAverage(model, config.ema) if config.ema else None
        return cls(model, average, make_optimizer(model, config), torch.amp.GradScaler(device.type, enabled=fp16))

    @property
    def for_use(self) -> Detector:
        """The model to evaluate and save: the average, if there is one."""
        return self.average.module if self.average is not None else self.model

    def rescales(self) -> bool:
        """Whether a non-finite gradient is attributed to the scale of the fp16 scaler, which is then halved.

        Every gradient overflows at some scale. A gradient that is not finite after `HALVINGS` halvings, or without
        scaling, is attributed to the model.
        """
        found = self.scaler.is_enabled() and self.halvings < HALVINGS and self.scaler.get_scale() > 1
        self.halvings += found
        return found

    def save(
        self,
        path: Path,
        config: Config,
        categories: Categories,
        weights_only: bool = False,
        keep: Path | None = None,
    ) -> None:
        """Write the weights for inference and, unless `weights_only`, the state; `keep` as in `save_checkpoint`."""
        notes: dict[str, Any] = {"step": self.step, "best": self.best}
        if config.data.split:
            notes["split"] = config.data.split.model_dump()
        tensors: dict[str, Tensor] = {}
        if not weights_only:
            tensors = {f"model/{key}": value for key, value in self.model.state_dict().items()} if self.average else {}
            if self.average is not None:
                tensors["averaged"] = torch.tensor(self.average.updates)
            optimizer = self.optimizer.state_dict()
            for index, values in optimizer["state"].items():
                tensors |= {f"optimizer/{index}/{k}": v for k, v in values.items() if isinstance(v, Tensor)}
            notes |= {"measured": self.measured, "best_step": self.best_step, "stale": self.stale}
            notes |= {"seconds": self.seconds, "skipped": self.skipped, "halvings": self.halvings}
            notes |= {"scaler": self.scaler.state_dict()}
        save_checkpoint(path, config.model, categories, self.for_use.state_dict(), notes, tensors, keep)

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Restore the state written by `save`.

        Raises:
            DoubleheadError: the file contains no training state.
        """
        notes, tensors = checkpoint.notes, checkpoint.training
        if "measured" not in notes:
            raise DoubleheadError(f"{path}: holds weights, but no state of a run to resume")
        self.for_use.load_state_dict(checkpoint.weights)
        if self.average is not None:
            self.model.load_state_dict(_under(tensors, "model/"))
            self.average.updates = int(tensors["averaged"])
        learning = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimizer/").items():
            index, name = key.split("/")
            like = learning[int(index)]
            laid = torch.empty_like(like).copy_(value) if value.shape == like.shape else value  # channels last
            state.setdefault(int(index), {})[name] = laid
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if notes["scaler"]:
            self.scaler.load_state_dict(notes["scaler"])
        self.step, self.measured, self.best = notes["step"], notes["measured"], notes["best"]
        self.best_step, self.stale = notes.get("best_step", -1), notes.get("stale", 0)
        self.seconds, self.skipped = notes["seconds"], notes.get("skipped", 0)
        self.halvings = notes.get("halvings", 0)


class MovingAverage:
    """Exponential moving average of a model: parameters and running statistics are averaged, counters copied.

    The decay grows to `decay` as (1 + n) / (10 + n) after n updates, so that the initial weights are forgotten. Unlike
    torch's AveragedModel, updates do not wait for the GPU.
    """

    def __init__(self, model: Detector, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Detector) -> None:
        """Update the average after a step."""
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 1.0
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point() and weight < 1]
        copied = [pair for pair in pairs if not (pair[0].is_floating_point() and weight < 1)]
        if floats:
            averaged, current = map(list, zip(*floats, strict=True))
            torch._foreach_lerp_(averaged, current, weight)
        for average, value in copied:
            average.copy_(value)
        self.updates += 1


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Create the optimiser: SGD with decay on all weights, as published, or AdamW with decay on matrices and kernels.

    Each group has a `share` of the learning rate: 1, reduced by `train.layer_decay` for stages of the backbone, or the
    `lr` of a branch.
    """
    groups: list[dict[str, Any]] = []
    for share, learning in _by_rate(model, config.layer_decay).items():
        if config.optimizer == "sgd":
            groups.append({"params": learning, "share": share})
            continue
        groups.append({"params": [p for p in learning if p.ndim > 1], "share": share})
        groups.append({"params": [p for p in learning if p.ndim <= 1], "share": share, "weight_decay": 0.0})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay, fused=True)


def _by_rate(model: nn.Module, decay: float) -> dict[float, list[nn.Parameter]]:
    """Group trainable parameters by their share of the learning rate, starting with 1, for all but body and branches.

    The last stage of the body has the share `decay`, the one before it `decay` squared, and so on (BEiT, appendix; here
    by the five stages used for freezing).
    """
    shares: dict[nn.Parameter, float] = {}
    if decay < 1:
        stages = model.backbone.body.stages()  # type: ignore[union-attr, operator]
        for place, stage in enumerate(reversed(stages), 1):
            shares |= {p: decay**place for layer in stage for p in layer.parameters()}
    for branch in model.roi_heads:  # type: ignore[union-attr]
        shares |= dict.fromkeys(branch.parameters(), branch.config.lr)
    result: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            result.setdefault(shares.get(parameter, 1.0), []).append(parameter)
    return dict(sorted(result.items(), key=lambda item: (item[0] != 1, -item[0])))


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
