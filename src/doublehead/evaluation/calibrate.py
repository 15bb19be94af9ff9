"""Calibration: scores that match the share of correct detections.

Temperature scaling (Guo et al., ICML 2017), with an offset of the background's logit. A head learns to classify
proposals, of which NMS keeps one per object. The others that it keeps are background more often than scores suggest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from doublehead.common.console import Console
from doublehead.common.device import pick_device
from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig
from doublehead.data.loader import default_workers, evaluation_loader
from doublehead.data.records import Split
from doublehead.evaluation.evaluate import for_classes, measured_split, require_known_classes
from doublehead.evaluation.matched import match
from doublehead.evaluation.report.reliability import Reliability, reliability
from doublehead.evaluation.thresholds import Cut, Sweep
from doublehead.inference.predictor import Predictor
from doublehead.model.box_head import calibrated
from doublehead.model.checkpoint import load_checkpoint, save_checkpoint
from doublehead.model.interop.published import resolve
from doublehead.model.postprocess import fuse

TEMPERATURES, OFFSET = (0.05, 20.0), 20.0
"""Bounds: if all detections were correct, or all wrong, the fit would diverge to 0 or infinity."""

FEWEST = 20
"""Minimum detections for fitting. At least a quarter of this number must be correct, and a quarter wrong."""


ToScores = Callable[[Tensor], Tensor]
"""Logits (D, C + 1) to scores (D, C + 1), both with the background first."""


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


class Fitted(NamedTuple):
    """Calibration of a head's logits; the default is the identity."""

    temperature: float = 1.0
    background_offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Asked:
    """Detections of a split before calibration, with the heads' logits of their proposals."""

    logits: dict[str, Tensor]  # of each branch whose scores count, (D, C + 1) with the background first
    labels: Tensor  # (D,) 1..C of the model
    right: np.ndarray  # (D,) bool
    counted: np.ndarray  # (D,) bool: not on a crowd
    objects: int
    to_scores: ToScores

    def scores(self, heads: Mapping[str, Fitted], fusion: str) -> np.ndarray:
        """Fused scores of the detections with calibrated heads, (D,)."""
        said = [(self.logits[name], *heads[name]) for name in self.logits]
        return _scores(said, self.labels, fusion, self.to_scores).numpy()


@dataclass(frozen=True)
class Calibrated:
    """Fitted values, and the checkpoint with them."""

    path: Path
    heads: dict[str, Fitted]
    before: Reliability
    after: Reliability
    best: Cut
    split: str

    def __str__(self) -> str:
        heads = "".join(
            f"{name}: temperature {fitted.temperature:.3f}, background offset {fitted.background_offset:.3f}\n"
            for name, fitted in self.heads.items()
        )
        return (
            f"{heads}calibration error on {self.split}: {self.before.error:.1%} before, {self.after.error:.1%} after\n"
            f"decision threshold: {self.best.score:.2f}, F1 {self.best.f1:.1%}\n"
            f"{self.path} holds the calibrated weights"
        )


def calibrate(
    weights: str | Path,
    data: str | Path | Any,
    split: str = "val",
    output: str | Path | None = None,
    batch_size: int = 4,
    workers: int | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Calibrated:
    """Calibrate each head whose scores are used, and write a checkpoint with the best decision threshold.

    Args:
        weights: checkpoint or published name; not modified.
        data: as in `evaluate`.
        split: images that the model was not trained on.
        output: checkpoint to write; None: `best-calibrated.safetensors` beside the weights.
        batch_size: images per forward pass.
        workers: processes that decode images; None: chosen by the number of CPU cores.
        device: auto, cpu, cuda or a card such as cuda:1.
        progress: whether to show a progress bar.

    Raises:
        DoubleheadError: weights, data or split are invalid, the output exists, or there are too few detections.
    """
    path = resolve(weights)
    destination = Path(output) if output else path.with_name(f"{path.stem}-calibrated.safetensors")
    if destination.exists():
        raise DoubleheadError(f"{destination}: exists already; remove it or give another --output")
    if destination.suffix != ".safetensors":
        raise DoubleheadError(f"{destination}: a checkpoint's name ends in .safetensors")
    checkpoint, chosen = load_checkpoint(path), measured_split(weights, data, split)
    require_known_classes(checkpoint.categories, chosen.categories)
    predictor = Predictor(checkpoint.build(), checkpoint.categories, pick_device(device))
    predictor = for_classes(predictor.with_options(calibrated=False), chosen.categories)
    fusion = predictor.options.fusion
    with Console(progress).progress("measuring", len(chosen.records)) as advance:
        asked = ask_split(predictor, chosen, batch_size, default_workers() if workers is None else workers, advance)
    right, wrong = (int((asked.counted & (asked.right == value)).sum()) for value in (True, False))
    if right + wrong < FEWEST or min(right, wrong) < FEWEST // 4:
        raise DoubleheadError(
            f"{data}: split `{split}` gives {right} right and {wrong} wrong detections, too few to calibrate; "
            "give a larger --split"
        )
    counted = torch.from_numpy(asked.counted)
    fitted = fit(
        [logits[counted] for logits in asked.logits.values()],
        asked.labels[counted],
        torch.from_numpy(asked.right[asked.counted]),
        fusion,
        asked.to_scores,
    )
    heads = dict(zip(asked.logits, fitted, strict=True))
    before, after = (_counted(asked, values, fusion) for values in (dict.fromkeys(heads, Fitted()), heads))
    order = np.argsort(-after[0], kind="stable")
    best = Sweep(after[0][order], np.cumsum(after[1][order]), asked.objects).best
    config = with_heads(checkpoint.config, heads, best.score)
    save_checkpoint(destination, config, checkpoint.categories, checkpoint.weights, checkpoint.notes)
    return Calibrated(destination, heads, reliability(*before), reliability(*after), best, chosen.name)


def fit(
    logits: Sequence[Tensor], labels: Tensor, right: Tensor, fusion: str, to_scores: ToScores = _softmax
) -> list[Fitted]:
    """Fit temperature and offset of each head by minimising the cross-entropy of fused scores with correctness.

    Args:
        logits: logits of each head, (D, C + 1), background first.
        labels: (D,) class of each detection, 1..C.
        right: (D,) bool, whether each detection is correct.
        fusion: rule that fuses the heads' scores.
        to_scores: converts logits to scores.
    """
    wide = [each.double() for each in logits]
    values = torch.zeros(len(wide), 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([values], max_iter=200, line_search_fn="strong_wolfe")
    truth = right.double()

    def heads() -> list[tuple[Tensor, Tensor]]:
        temperatures = values[:, 0].exp().clamp(*TEMPERATURES)
        return list(zip(temperatures, values[:, 1].clamp(-OFFSET, OFFSET), strict=True))

    def loss() -> Tensor:
        optimizer.zero_grad()
        said = [(each, *head) for each, head in zip(wide, heads(), strict=True)]
        scores = _scores(said, labels, fusion, to_scores).clamp(1e-12, 1 - 1e-12)
        value = functional.binary_cross_entropy(scores, truth)
        value.backward()
        return value

    optimizer.step(loss)
    return [Fitted(float(temperature.detach()), float(offset.detach())) for temperature, offset in heads()]


def ask_split(predictor: Predictor, split: Split, batch_size: int, workers: int, advance: Any) -> Asked:
    """Detect objects in a split, and collect the heads' logits of the proposals that own the detections."""
    model, options = predictor.model, predictor.options
    logits: dict[str, list[Tensor]] = {}
    labels, results = list[Tensor](), list[dict[str, Any]]()
    for images, records in evaluation_loader(split, batch_size, workers):
        with torch.no_grad(), predictor.autocast():
            stage = model.first_stage(images, options)
            found = model.second_stage(stage, options)
            owners = [p[each["proposals"]] for p, each in zip(stage.proposals, found, strict=True)]
            for name, said in model.roi_heads.logits(stage.levels, owners, stage.sizes, options).items():
                logits.setdefault(name, []).append(said.double().cpu())
        labels += [each["labels"].cpu() for each in found]
        for record, each in zip(records, found, strict=True):
            results += predictor.as_detections(each).to_coco(record.image_id)
        advance(len(images))
    matched = match(split.records, split.categories, results)
    place = torch.from_numpy(matched.place)
    return Asked(
        {name: torch.cat(parts)[place] for name, parts in logits.items()},
        torch.cat(labels)[place],
        matched.hit,
        ~matched.ignored,
        int((~matched.objects.crowd).sum()),
        model.roi_heads.last.classification.scores,
    )


def with_heads(config: ModelConfig, heads: Mapping[str, Fitted], threshold: float) -> ModelConfig:
    """Return the config with calibrated heads, by branch, and a decision threshold."""
    branches = tuple(
        branch.model_copy(update=heads[name]._asdict()) if name in heads else branch
        for name, branch in zip(config.branch_names, config.branches, strict=True)
    )
    roi = config.roi.model_copy(update={"calibrated": True, "decision_threshold": threshold})
    return config.model_copy(update={"branches": branches, "roi": roi})


def _scores(said: Sequence[tuple[Tensor, Any, Any]], labels: Tensor, fusion: str, to_scores: ToScores) -> Tensor:
    """Fused score of each detection's class, (D,), from the heads' logits, temperatures and offsets."""
    scores = fuse([to_scores(calibrated(*one)) for one in said], fusion)
    return scores[torch.arange(len(labels)), labels]


def _counted(asked: Asked, heads: Mapping[str, Fitted], fusion: str) -> tuple[np.ndarray, np.ndarray]:
    return asked.scores(heads, fusion)[asked.counted], asked.right[asked.counted]
