"""Predictions of a model's branches for given boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from doublehead.config import InferenceOptions, ModelConfig
from doublehead.model.detector import Detector, FirstStage
from doublehead.model.postprocess import average, fuse

AT_ONCE = 512
"""Boxes pooled and run at once, to bound memory."""

FUSED = "fused"


@dataclass(frozen=True)
class Heads:
    """Branches of a model that predict scores, and branches that predict boxes."""

    scores: tuple[str, ...]  # names of branches, and `fused` where there are several
    boxes: tuple[str, ...]  # likewise; `fused` boxes are averages
    own: tuple[str, str]  # whose scores and whose boxes the model's config asks for

    @property
    def combinations(self) -> list[tuple[str, str]]:
        """All pairs of a head for scores and one for boxes, the model's default first."""
        pairs = [(score, box) for score in self.scores for box in self.boxes]
        return sorted(pairs, key=lambda pair: pair != self.own)


@dataclass(frozen=True)
class Answers:
    """Scores of an object's class and regressed boxes, by head, for W boxes around the object."""

    scores: dict[str, np.ndarray]  # (W,)
    boxes: dict[str, np.ndarray]  # (W, 4) xyxy in pixels of the image


def heads_of(model: Detector, options: InferenceOptions) -> Heads:
    """Return the heads of a model, and those selected by its options."""
    config: ModelConfig = model.config
    named = list(zip(config.branch_names, config.branches, strict=True))
    scores = _and_fused([name for name, branch in named if branch.classify])
    boxes = _and_fused([name for name, branch in named if branch.regress])
    used = model.roi_heads.last.box_branches(options)
    own = (options.score_branch or scores[-1], FUSED if len(used) > 1 else config.branch_names[used[0]])
    return Heads(scores, boxes, own)


def _and_fused(names: list[str]) -> tuple[str, ...]:
    return (*names, FUSED) if len(names) > 1 else tuple(names)


def chosen(options: InferenceOptions, score: str, box: str) -> InferenceOptions:
    """Return options that select other heads: a branch or `fused`, for the scores and for the boxes."""
    boxes = {"box_branch": None, "box_fusion": "average"} if box == FUSED else {"box_branch": box}
    return options.model_copy(update={"score_branch": None if score == FUSED else score, **boxes})


@torch.no_grad()
def ask(
    model: Detector,
    stage: FirstStage,
    place: int,
    boxes: np.ndarray,
    labels: np.ndarray,
    options: InferenceOptions | None = None,
) -> Answers:
    """Run every branch on boxes of one image, in parts.

    Args:
        model: the detector, ready for inference.
        stage: result of its first stage on a batch of images.
        place: index of the image in the batch.
        boxes: (W, 4) xyxy in pixels of the image.
        labels: (W,) classes 1..C of the model whose scores and boxes are returned.
        options: fusion of scores; None: the model's default.
    """
    scores, regressed = ask_for_all(model, stage, place, boxes, options)
    rows = np.arange(len(labels))
    own = {name: table[rows, labels if table.shape[1] > 1 else 0] for name, table in regressed.items()}
    return Answers({name: table[rows, labels] for name, table in scores.items()}, own)


@torch.no_grad()
def ask_for_all(
    model: Detector, stage: FirstStage, place: int, boxes: np.ndarray, options: InferenceOptions | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """As `ask`, for every class.

    Returns:
        By head, scores (W, C + 1) with the background first; and boxes (W, C + 1, 4), or (W, 1, 4) if class-agnostic.
    """
    fusion = (options or model.options).fusion
    given = torch.from_numpy(boxes).to(stage.levels[0].device)
    parts = [_ask(model, stage, place, part, fusion) for part in given.split(AT_ONCE)]
    scores, regressed = (
        {name: np.concatenate([part[kind][name].cpu().numpy() for part in parts]) for name in parts[0][kind]}
        for kind in (0, 1)
    )
    return scores, regressed


def pooled(model: Detector, stage: FirstStage, place: int, boxes: Tensor, scale: float) -> Tensor:
    """Pool RoI features (W, C, 7, 7) of boxes (W, 4), in pixels of one image of the batch, enlarged by `scale`."""
    rois = to_input(model, stage, place, boxes)
    empty = rois[:0]
    pooler = model.roi_heads.last.pooler
    return pooler(stage.levels, [rois if i == place else empty for i in range(len(stage.sizes))], scale)


def to_input(model: Detector, stage: FirstStage, place: int, boxes: Tensor) -> Tensor:
    """Convert boxes from pixels of one image of the batch to pixels of the input."""
    return model.edges.rescale(boxes, 1 / stage.ratios[place])


def _ask(
    model: Detector, stage: FirstStage, place: int, boxes: Tensor, fusion: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    probabilities: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}
    head = model.roi_heads.last
    for name, branch in zip(model.config.branch_names, head, strict=True):
        logits, found = branch(pooled(model, stage, place, boxes, branch.config.scale))
        if logits is not None:
            probabilities[name] = head.classification.scores(logits)
        if found is not None:
            deltas[name] = found
    if len(probabilities) > 1:
        probabilities[FUSED] = fuse(list(probabilities.values()), fusion)
    if len(deltas) > 1:
        deltas[FUSED] = average(list(deltas.values()))
    regressed = {}
    for name, found in deltas.items():
        decoded = head.coder.decode_single(found, to_input(model, stage, place, boxes))
        clipped = model.edges.clip(decoded.reshape(-1, 4), stage.sizes[place])
        regressed[name] = model.edges.rescale(clipped, stage.ratios[place]).view(len(boxes), -1, 4)
    return probabilities, regressed


def model_names(weights: list[str]) -> list[str]:
    """Short, distinct name for each model: of its file, of its run folder, or a number."""
    paths = [Path(w) for w in weights]
    names = [path.parent.name if path.stem in ("best", "last") and path.parent.name else path.stem for path in paths]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({place})" for place, name in enumerate(names, 1)]
