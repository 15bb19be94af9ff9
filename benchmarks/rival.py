"""torchvision's Faster R-CNN trained on a dataset with the backbone, images and schedule of a preset, to compare AP."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from doublehead.common.console import Console
from doublehead.common.device import pick_precision
from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError
from doublehead.config import Config, FPNConfig, InferenceOptions, ModelConfig
from doublehead.data.check import read_for_training
from doublehead.data.dataset import open_dataset
from doublehead.data.loader import Waited
from doublehead.data.records import Split
from doublehead.evaluation.bootstrap import Matches, draws
from doublehead.evaluation.coco import evaluate_detections
from doublehead.evaluation.evaluate import evaluate
from doublehead.inference.predictor import Predictor
from doublehead.model.backbone import Backbone
from doublehead.training.batches import batches_of
from doublehead.training.recipes import resolve
from doublehead.training.schedule import learning_rate
from doublehead.training.state import TrainingState
from doublehead.training.step import Stepper
from doublehead.training.study.summary import DRAWS, Difference

FIGURES = ("AP", "AP50", "AP75")
RESULT = "result.json"


class Rival(nn.Module):
    """torchvision's Faster R-CNN with its own numbers everywhere, but for the backbone and the size of images.

    The pyramid is torchvision's class with its 256 channels, on the body that the config names, with the same weights
    and frozen norms.
    """

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        backbone = Backbone(config.backbone, FPNConfig(), pretrained=True)
        backbone.out_channels = FPNConfig().channels
        size = config.input
        self.config = config
        self.roi_heads: tuple[nn.Module, ...] = ()  # no branches with a learning rate of their own
        self.net = FasterRCNN(
            backbone,
            num_classes=classes + 1,
            min_size=size.short_side,
            max_size=size.long_side,
            image_mean=size.mean,
            image_std=size.std,
            box_detections_per_img=config.roi.detections,
            box_score_thresh=config.roi.score_threshold,
        )

    @property
    def backbone(self) -> nn.Module:
        """Body and pyramid, whose stages `train.layer_decay` reads."""
        return self.net.backbone

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses by name; images uint8 (3, H, W), boxes xyxy, labels from 1."""
        return self.net([image / 255 for image in images], targets)

    @torch.no_grad()
    def detect(self, images: list[Tensor], options: InferenceOptions | None = None) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of each image, on any device; the options are the config's."""
        device = next(self.parameters()).device
        return self.net([image.to(device) / 255 for image in images])


def train_rival(
    data: str, output: Path, steps: int, preset: str, device: str, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train torchvision's Faster R-CNN as `doublehead train` trains a preset, and evaluate it on the test split.

    Images, augmentation, optimiser, schedule and averaging of weights are the preset's.

    Args:
        data: dataset folder or YAML.
        output: a new folder; gets test/predictions.json, test/metrics.json and result.json.
        steps: optimiser steps.
        preset: gives the body, the size of images and the recipe.
        device: as in `doublehead train`.
        settings: of the config, by dotted keys.

    Returns:
        What result.json holds: `steps`, `seed`, `seconds_per_step` (median) and `metrics`.

    Raises:
        DoubleheadError: the data or a setting is invalid, or the folder holds a result.
    """
    if (output / RESULT).exists():
        raise DoubleheadError(f"{output}: already holds a result; give another --output")
    said = {"data.val_split": None, "train.steps": steps, "train.epochs": None, "data.check": "header"}
    config = resolve(preset, None, None, {"data.path": data} | said | dict(settings or {}))
    processes = Distribution.start(device, config.train.timeout)
    split, _ = read_for_training(data, config.data.train_split, None, config.data.split)
    torch.manual_seed(config.train.seed)
    model = Rival(config.model, len(split.categories)).to(processes.device)
    trained, seconds = _learn(model, config, split, processes, steps, output)
    predictor = Predictor(trained.eval(), split.categories, processes.device)
    found = evaluate(predictor, data, "test", workers=config.data.workers, shares=config.data.split)
    found.save(output / "test")
    figures = {name: found.metrics[name] for name in FIGURES}
    values = {"steps": steps, "seed": config.train.seed, "seconds_per_step": seconds, "metrics": figures}
    (output / RESULT).write_text(json.dumps(values, indent=1), encoding="utf-8")
    return values


def _learn(
    model: Rival, config: Config, split: Split, processes: Distribution, steps: int, output: Path
) -> tuple[Any, float]:
    """Train; returns the model to evaluate, and the median seconds of a step."""
    settings, console = config.train, Console()
    precision = pick_precision(settings.precision, processes.device)
    state = TrainingState.create(model, settings, processes.device, precision is torch.float16)
    stepper = Stepper(
        settings,
        state,
        processes,
        partial(learning_rate, settings, total=steps),
        torch.autocast(processes.device.type, precision, enabled=precision is not None),
        split.records,
        output / "not-finite",
        console.say,
        lambda: False,
    )
    taken: list[float] = []
    with (
        closing(Waited(batches_of(config, split, processes, 0, steps))) as batches,
        console.progress("training", steps) as advance,
    ):
        for step in range(steps):
            began = time.monotonic()
            stepper.take(model, step, batches, began)
            taken.append(time.monotonic() - began)
            advance(1)
    return state.for_use, median(taken)


@dataclass(frozen=True)
class Compared:
    """Detections of one system on a split beside those of the first; figures in 0..1."""

    name: str
    ap: float
    ap50: float
    ap75: float
    difference: Difference | None  # of AP to the first's, over images; None: the first itself


def compare(data: str, folders: Sequence[Path], split: str = "test") -> list[Compared]:
    """Compare the predictions of runs on the same split, paired by image.

    Args:
        data: dataset folder or YAML.
        folders: each holds `<split>/predictions.json`, as studies and `train_rival` write them; the baseline first.
        split: name of the split.

    Raises:
        DoubleheadError: a folder holds no predictions, or those of other images.
    """
    chosen = open_dataset(data).read(split)
    images = len(chosen.records)
    drawn = draws(images, DRAWS, np.random.default_rng(0))
    weights = np.concatenate([np.ones((1, images), np.uint8), drawn])
    aps, rows = [], list[Compared]()
    for folder in folders:
        file = folder / split / "predictions.json"
        if not file.exists():
            raise DoubleheadError(f"{file}: does not exist; give folders of finished runs")
        results = json.loads(file.read_text(encoding="utf-8"))
        aps.append(Matches(chosen.records, chosen.categories, results).ap(weights))
        metrics = evaluate_detections(chosen.records, chosen.categories, results)
        apart = aps[-1] - aps[0]
        difference = Difference.of(apart[0], apart[1:]) if rows else None
        rows.append(Compared(str(folder), *(metrics[name] for name in FIGURES), difference))
    return rows


def compared_table(rows: Sequence[Compared]) -> Table:
    """For the console."""
    table = Table("", "AP", "AP50", "AP75", "AP - the first")
    for row in rows:
        figures = (f"{100 * value:.1f}" for value in (row.ap, row.ap50, row.ap75))
        table.add_row(row.name, *figures, str(row.difference or ""))
    return table
