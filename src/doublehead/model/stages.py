"""Cascades of box heads (Cai and Vasconcelos, *Cascade R-CNN*): settings, and published conventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from doublehead.common.strict import Fraction, NotNegative, Positive, Strict
from doublehead.common.tables import row_of
from doublehead.model.parts import BranchConfig

Deviations = tuple[Positive, Positive, Positive, Positive]
ONE_HEAD: Deviations = (0.1, 0.1, 0.2, 0.2)


@dataclass(frozen=True)
class Stage:
    """A box head of a detector, with its training settings."""

    branches: tuple[BranchConfig, ...]
    foreground_iou: float
    deviations: Deviations = ONE_HEAD  # of offsets and log sizes of boxes, by which they are divided
    loss_weight: float = 1.0
    beta: float = 1.0  # where smooth L1 turns from square to linear; 0: L1
    roi_gradient: float = 1.0  # factor of the gradient into RoI features
    refines: bool = False  # a stage that is not the last: the boxes of all proposals are needed
    regress_iou: float | None = None  # least IoU of the positives of branches that only regress; None: foreground_iou


CONVENTIONS: dict[str, dict[str, Any]] = {
    "mmdetection": {
        "ious": (0.5, 0.6, 0.7),
        "deviations": (ONE_HEAD, (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)),
        "loss_weights": (1.0, 0.5, 0.25),
        "beta": 1.0,
        "sampling": "anew",
        "scores": "logits",
        "roi_gradient": "whole",
    },
    "detectron2": {
        "ious": (0.5, 0.6, 0.7),
        "deviations": (ONE_HEAD, (0.05, 0.05, 0.1, 0.1), (1 / 30, 1 / 30, 1 / 15, 1 / 15)),
        "loss_weights": (1.0, 1.0, 1.0),
        "beta": 0.0,
        "sampling": "once",
        "scores": "probabilities",
        "roi_gradient": "shared",
    },
}
"""Conventions of published cascades: defaults for omitted values of a CascadeConfig."""

EARLY: dict[str, tuple[BranchConfig, ...] | None] = {
    "same": None,
    "fc": (BranchConfig(trunk="fc", classify=1.0, regress=1.0),),
    "narrow": (
        BranchConfig(trunk="fc", classify=2.0, regress=0.0),
        BranchConfig(trunk="narrow", classify=0.0, regress=2.5),
    ),
}
"""Branches of the stages before the last, which run on all proposals: those of the last stage, an fc-head that also
predicts boxes, or an fc-head and a conv-head of few channels."""

BY_STAGE = ("deviations", "loss_weights")


class CascadeConfig(Strict):
    """A cascade of box heads: each refines the boxes that the next one scores. The last outputs the detections."""

    convention: str = Field(default="mmdetection", description="A row of CONVENTIONS: mmdetection, detectron2.")
    early: tuple[BranchConfig, ...] | None = Field(
        default=None,
        description="Branches of all stages but the last: a list, or fc, narrow or same; null: `model.branches`.",
    )
    ious: tuple[Fraction, ...] = Field(min_length=1, description="Minimum IoU of a positive, stage by stage.")
    deviations: tuple[Deviations, ...] = Field(
        description="Standard deviations of box deltas (x, y, width, height), stage by stage."
    )
    loss_weights: tuple[Positive, ...] = Field(description="Factor of all losses of a stage.")
    beta: NotNegative = Field(description="Where the smooth L1 loss of boxes turns linear; 0: L1.")
    sampling: Literal["anew", "once"] = Field(
        description="anew: each stage samples among the refined boxes and the objects; once: later stages label anew "
        "what the first one sampled."
    )
    scores: Literal["logits", "probabilities"] = Field(description="What is averaged over the stages.")
    roi_gradient: Literal["whole", "shared"] = Field(
        description="shared: the gradient into RoI features is divided by the number of stages."
    )

    @model_validator(mode="before")
    @classmethod
    def _by_convention(cls, values: Any) -> Any:
        """Fill in omitted values, for as many stages as `ious` has, if given."""
        values = {"convention": values} if isinstance(values, str) else values
        if not isinstance(values, dict):
            return values
        given = values.get("convention", "mmdetection")
        usual = CONVENTIONS[row_of("convention", given, CONVENTIONS)]
        result = usual | values
        if "ious" in values and isinstance(values["ious"], list | tuple):
            stages = len(values["ious"])
            result |= {key: usual[key][:stages] for key in BY_STAGE if key not in values}
        return result

    @field_validator("early", mode="before")
    @classmethod
    def _named(cls, early: Any) -> Any:
        return EARLY[row_of("kind of early stages", early, EARLY)] if isinstance(early, str) else early

    @model_validator(mode="after")
    def _fits(self) -> CascadeConfig:
        for key in BY_STAGE:
            if len(getattr(self, key)) != len(self.ious):
                raise ValueError(
                    f"ious has {len(self.ious)} stages and {key} {len(getattr(self, key))}; make them equal"
                )
        if self.early is not None:
            require_both_tasks(self.early, "early")
            require_earlier_scores(self.early, "early")
            if any(branch.calibrated for branch in self.early):
                raise ValueError(
                    "early: scores are calibrated after they are averaged over the stages, so give temperature and "
                    "background_offset to the branches of the last one, `model.branches`"
                )
        return self

    def stages(self, branches: tuple[BranchConfig, ...]) -> tuple[Stage, ...]:
        """All box heads, the last of which has `branches`."""
        count = len(self.ious)
        return tuple(
            Stage(
                branches if place == count - 1 else self.early or branches,
                iou,
                deviations,
                weight,
                self.beta,
                1 / count if self.roi_gradient == "shared" else 1.0,
                refines=place < count - 1,
            )
            for place, (iou, deviations, weight) in enumerate(
                zip(self.ious, self.deviations, self.loss_weights, strict=True)
            )
        )


def require_both_tasks(branches: Sequence[BranchConfig], key: str) -> None:
    """Require branches for both tasks, classification and regression.

    Raises:
        ValueError: a task has no branch; the message names the key.
    """
    if not any(b.classify for b in branches) or not any(b.regress for b in branches):
        raise ValueError(f"{key}: one of them must classify and one must regress")


def require_earlier_scores(branches: Sequence[BranchConfig], key: str) -> None:
    """Require that an earlier branch scores all proposals before one that uses hard negatives.

    Raises:
        ValueError: no earlier branch does; the message names the key.
    """
    for place, branch in enumerate(branches):
        if branch.hard_negatives and not any(b.classify and b.negatives is None for b in branches[:place]):
            raise ValueError(f"{key}.{place}.hard_negatives: no branch before it classifies all proposals; set it to 0")
