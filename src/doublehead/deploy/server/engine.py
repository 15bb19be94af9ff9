"""Inference with heads and thresholds chosen per image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from doublehead.common.errors import DoubleheadError
from doublehead.config import NMS, InferenceOptions
from doublehead.evaluation.analysis.heads import FUSED, Heads, chosen, heads_of
from doublehead.inference.detections import Detections
from doublehead.inference.ensemble import Ensemble
from doublehead.inference.predictor import Predictor
from doublehead.model.detector import Detector, FirstStage

MOST = 1000
"""Maximum detections per image in a request. With NMS at 1 these are the best candidates."""


@dataclass(frozen=True, order=True)
class Choice:
    """Heads and thresholds for an image."""

    scores: str  # the branch whose class scores count, or `fused`
    boxes: str  # the branch whose boxes count
    nms: float  # IoU above which the lesser of two detections of a class is dropped
    limit: int  # detections at most
    how: NMS  # what NMS does to the lesser

    def applied_to(self, options: InferenceOptions) -> InferenceOptions:
        """Return options with this choice."""
        changed = {"nms": self.how, "nms_iou": self.nms, "detections": self.limit}
        return chosen(options, self.scores, self.boxes).model_copy(update=changed)


class Engine:
    """A Predictor with heads and thresholds chosen per image. Not thread-safe.

    Exported models, ensembles, and models with tiles, flip or scales offer no choice.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.model: Detector | None = None
        with suppress(DoubleheadError):  # of one that gives no choice
            self.model = predictor.model
        self.heads: Heads | None = None
        self.own: Choice | None = None
        if self.model is not None:
            options = predictor.options
            self.heads = heads_of(self.model, options)
            self.own = Choice(*self.heads.own, options.nms_iou, options.detections, options.nms)

    def choose(
        self, scores: str | None = None, boxes: str | None = None, nms: float | None = None, limit: int | None = None
    ) -> Choice | None:
        """The model's default choice, with the requested changes.

        Raises:
            DoubleheadError: the model does not have the head, or offers no choice.
        """
        asked = {"scores": scores, "boxes": boxes, "nms": nms, "limit": limit}
        if self.own is None:
            if named := [name for name, value in asked.items() if value is not None]:
                raise DoubleheadError(
                    f"`{named[0]}` is fixed {self.fixed}; omit it, or serve one checkpoint on whole images"
                )
            return None
        for task, name in (("scores", scores), ("boxes", boxes)):
            if name is not None and (reason := self.lacks(task, name)):
                raise DoubleheadError(f"{task}={name}: {reason}")
        return Choice(
            scores or self.own.scores,
            boxes or self.own.boxes,
            self.own.nms if nms is None else nms,
            limit or self.own.limit,
            self.own.how if nms is None else "hard",
        )

    @property
    def fixed(self) -> str | None:
        """Where there is no choice: "in an exported model", say. None: there is one."""
        if self.model is not None:
            return None
        if isinstance(self.predictor, Ensemble):
            return "in an ensemble"
        return "in an exported model" if self.predictor.options.plain else "with tiles, flip or scales"

    def names(self, task: str) -> list[str]:
        """Names that `scores` or `boxes` may be asked for, able or not; none where there is no choice."""
        if self.model is None:
            return []
        names = list(self.model.config.branch_names)
        return [*names, *[FUSED] * (len(names) > 1)] if task in ("scores", "boxes") else []

    def lacks(self, task: str, name: str) -> str | None:
        """Why a head cannot provide scores or boxes; None if it can."""
        assert self.model is not None
        assert self.heads is not None
        able = getattr(self.heads, task)
        if name in able:
            return None
        if name == FUSED:
            does = {"scores": "classifies", "boxes": "regresses boxes"}[task]
            return f"there is nothing to fuse: only the {able[0]}-head {does} in this model"
        if name in self.model.config.branch_names:
            learns = {"scores": "to classify", "boxes": "to regress boxes"}[task]
            return f"this model's {name}-head never learnt {learns}; choose {' or '.join(able)}"
        return f"this model has no such head; choose {' or '.join(able)}"

    def detect(self, images: Sequence[Tensor], choices: Sequence[Choice | None]) -> list[Detections]:
        """Detect objects in RGB tensors uint8 (3, H, W), each by its choice; what comes before the heads runs once."""
        if self.model is None:
            return self.predictor.detect(list(images))
        model, predictor = self.model, self.predictor
        wanted = [choice or self.own for choice in choices]
        order = sorted(range(len(images)), key=lambda i: wanted[i])  # type: ignore[arg-type,return-value]
        found: list[Detections] = []
        with predictor.autocast():
            stage = model.first_stage([images[i] for i in order], predictor.options)
            for choice, places in groupby(range(len(order)), key=lambda place: wanted[order[place]]):
                assert choice is not None
                first, *rest = places
                part = _part(stage, first, first + len(rest) + 1)
                results = model.second_stage(part, choice.applied_to(predictor.options))
                found += [predictor.as_detections(result) for result in results]
        return [found[order.index(i)] for i in range(len(images))]


def _part(stage: FirstStage, first: int, end: int) -> FirstStage:
    """Some images of a batch."""
    within = slice(first, end)
    levels = [level[within] for level in stage.levels]
    return FirstStage(levels, stage.proposals[within], stage.sizes[within], stage.ratios[within])
