"""torchvision's Faster R-CNN trained on a dataset with the backbone, images and schedule of a preset, to compare AP."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from doublehead.common.console import Console
from doublehead.common.device import pick_device, pick_precision
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
from doublehead.training.state import MovingAverage
from doublehead.training.step import on_device

DRAWS = 2000
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

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses by name; images uint8 (3, H, W), boxes xyxy, labels from 1."""
        return self.net([image / 255 for image in images], targets)

    @torch.no_grad()
    def detect(self, images: list[Tensor], options: InferenceOptions | None = None) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of each image; the options are the config's."""
        return self.net([image / 255 for image in images])


@dataclass(frozen=True)
class Trained:
    """Outcome of a training of the rival."""

    steps: int
    seconds_per_step: float  # median
    ap: float
    ap50: float
    ap75: float


def train_rival(
    data: str, output: Path, steps: int, preset: str, device: str, settings: Mapping[str, Any] | None = None
) -> Trained:
    """Train torchvision's Faster R-CNN as `doublehead train` trains a preset, and evaluate it on the test split.

    Images, augmentation, optimiser, schedule and averaging of weights are the preset's.

    Args:
        data: dataset folder or YAML.
        output: a new folder; gets test/predictions.json, test/metrics.json and result.json.
        steps: optimiser steps.
        preset: gives the body, the size of images and the recipe.
        device: as in `doublehead train`.
        settings: of the config, by dotted keys.

    Raises:
        DoubleheadError: the data or a setting is invalid, or the folder holds a result.
    """
    if (output / RESULT).exists():
        raise DoubleheadError(f"{output}: already holds a result; give another --output")
    said = {"data.val_split": None, "train.steps": steps, "train.epochs": None, "data.check": "header"}
    config = resolve(preset, None, None, {"data.path": data} | said | dict(settings or {}))
    place = pick_device(device)
    processes = Distribution.start(device, config.train.timeout)
    split, _ = read_for_training(data, config.data.train_split, None, config.data.split)
    torch.manual_seed(config.train.seed)
    model = Rival(config.model, len(split.categories)).to(place)
    averaged, median = _learn(model, config, split, processes, steps)
    averaged.eval()
    predictor = Predictor(averaged, split.categories, place)
    found = evaluate(predictor, data, "test", workers=config.data.workers, shares=config.data.split)
    found.save(output / "test")
    figures = {name: found.metrics[name] for name in ("AP", "AP50", "AP75")}
    values = {"steps": steps, "seed": config.train.seed, "seconds_per_step": median, "metrics": figures}
    (output / RESULT).write_text(json.dumps(values, indent=1), encoding="utf-8")
    return Trained(steps, median, *figures.values())


def _learn(model: Rival, config: Config, split: Split, processes: Distribution, steps: int) -> tuple[Rival, float]:
    """Train; returns the averaged model and the median seconds of a step."""
    settings = config.train
    learning = [p for p in model.parameters() if p.requires_grad]
    kernels = {"params": [p for p in learning if p.ndim > 1]}
    others = {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([kernels, others], settings.lr, weight_decay=settings.weight_decay, fused=True)
    average = MovingAverage(model, settings.ema)
    precision = pick_precision(settings.precision, processes.device)
    autocast = torch.autocast(processes.device.type, precision, enabled=precision is not None)
    taken: list[float] = []
    model.train()
    with (
        closing(Waited(batches_of(config, split, processes, 0, steps))) as batches,
        Console().progress("training", steps) as advance,
    ):
        for step in range(steps):
            began = time.perf_counter()
            images, targets = next(batches)
            with autocast:
                losses = model(*on_device(images, targets, processes.device))
            torch.stack(list(losses.values())).sum().backward()
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(learning, settings.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(model)
            taken.append(time.perf_counter() - began)
            advance(1)
    return average.module, float(np.median(taken))


@dataclass(frozen=True)
class Compared:
    """Detections of one system on a split, in per cent, beside those of the first."""

    name: str
    ap: float
    ap50: float
    ap75: float
    difference: tuple[float, float, float] | None  # of AP to the first's: mean and 95% interval over images


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
        aps.append(100 * Matches(chosen.records, chosen.categories, results).ap(weights))
        metrics = evaluate_detections(chosen.records, chosen.categories, results)
        apart = aps[-1] - aps[0]
        interval = (float(apart[0]), *map(float, np.nanpercentile(apart[1:], [2.5, 97.5])))
        figures = [100 * metrics[name] for name in ("AP", "AP50", "AP75")]
        rows.append(Compared(str(folder), *figures, interval if rows else None))
    return rows


def compared_table(rows: Sequence[Compared]) -> Table:
    """For the console."""
    table = Table("", "AP", "AP50", "AP75", "AP - the first")
    for row in rows:
        interval = "" if row.difference is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row.difference)
        table.add_row(row.name, *(f"{value:.1f}" for value in (row.ap, row.ap50, row.ap75)), interval)
    return table
