"""Initialise a detector from one with another head: backbone, FPN, RPN and matching parts of the heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError
from doublehead.common.model_files import missing_weights
from doublehead.config import ModelConfig
from doublehead.model.box_head import BoxHead
from doublehead.model.branches import Branch
from doublehead.model.checkpoint import Checkpoint
from doublehead.model.cost import parameters
from doublehead.model.detector import Detector
from doublehead.model.interop.published import resolve

FORM: dict[str, set[str] | None] = {
    "input": {"mean", "std", "antialias"},
    "backbone": None,
    "fpn": None,
    "rpn": {"depth", "anchors", "anchor_sizes", "aspect_ratios", "smallest_side"},
    "roi": {"aligned", "sampling_ratio"},
}
"""Sections and fields of a ModelConfig that the loaded weights depend on; None: all fields."""


Names = tuple[tuple[str, ...], tuple[str, ...]]
"""Class names of the model and of its source."""


@dataclass(frozen=True)
class Part:
    """Parameters of a part of the model, counted by their origin."""

    name: str
    taken: int  # as they are
    adapted: int  # of a predictor: rows for classes that both models know by name, or for boxes coded otherwise
    new: int


def read_source(source: str) -> Checkpoint:
    """Load the detector to initialise from.

    Args:
        source: published name, or path of a checkpoint or of a file that `convert` reads.

    Raises:
        DoubleheadError: the detector does not exist, or its file cannot be read.
    """
    from doublehead.model.interop.convert import read  # here: it takes a second, and most runs grow from nothing

    path = resolve(source)
    if not path.is_file():
        raise missing_weights(source)
    return read(path)[0]


def form(source: ModelConfig) -> dict[str, Any]:
    """Values of a ModelConfig that a model adopts from its source."""
    values = source.model_dump(mode="json")
    result = {
        section: {key: value for key, value in values[section].items() if fields is None or key in fields}
        for section, fields in FORM.items()
    }
    return result | {"inclusive_pixels": source.inclusive_pixels}


@torch.no_grad()
def grow(model: Detector, categories: Categories, source: str, partial: bool = False) -> list[Part]:
    """Load the matching weights of another detector.

    A layer matches one with the same name and shapes in the same part. A branch matches one with the same trunk and a
    task in common. Predictors are loaded only with their complete trunk, row by row for classes of the same name.

    Args:
        model: the detector to initialise.
        categories: classes of `model`.
        source: as in `read_source`.
        partial: whether layers of the backbone may remain unmatched.

    Returns:
        Numbers of loaded, adapted and new parameters, by part.

    Raises:
        DoubleheadError: as in `read_source`; or the backbone does not match completely.
    """
    checkpoint = read_source(source)
    donor = checkpoint.build()
    names = categories.names, checkpoint.categories.names
    body = _part("backbone", model.backbone.body, donor.backbone.body)
    if body.new and not partial:
        raise DoubleheadError(
            f"{source}: {body.new:,} parameters of its backbone do not fit the model's: keep the source's "
            "model.backbone, or set train.partial_weights=true to train those layers from their initial values"
        )
    parts = [
        body,
        _part("FPN", model.backbone.fpn, donor.backbone.fpn),
        _part("RPN", model.rpn.head, donor.rpn.head),
    ]
    heads = model.roi_heads.each
    for number, head in enumerate(heads):
        prefix = f"stage {number + 1}, " if len(heads) > 1 else ""
        for name, branch in zip(head.names, head, strict=True):
            other, giver = _like(branch, number, donor.roi_heads.each) or (None, head)
            factor = torch.tensor(head.coder.weights) / torch.tensor(giver.coder.weights)
            parts += _branch(f"{prefix}{name}", branch, other, names, factor)
    return parts


def growth_table(parts: Sequence[Part], source: str) -> Table:
    """Table of parts with their numbers of parameters, and totals."""
    table = Table("part", title=f"grown from {source}: parameters", title_justify="left")
    for column in ("taken", "adapted", "new"):
        table.add_column(column, justify="right")

    def row(name: str, *counts: int) -> None:
        table.add_row(name, *(f"{count:,}" if count else "" for count in counts))

    for part in parts:
        row(part.name, part.taken, part.adapted, part.new)
    table.add_section()
    row("all", *(sum(getattr(part, field) for part in parts) for field in ("taken", "adapted", "new")))
    return table


def _like(branch: Branch, number: int, givers: list[BoxHead]) -> tuple[Branch, BoxHead] | None:
    """The branch with the same trunk and most tasks in common, and its head; in a cascade, of the nearest stage."""

    def shared(other: Branch) -> int:
        tasks = ("classify", "regress")
        return sum(bool(getattr(branch.config, task) and getattr(other.config, task)) for task in tasks)

    nearest = sorted(range(len(givers)), key=lambda place: abs(place - number))
    pairs = [(other, givers[place]) for place in nearest for other in givers[place]]
    same = [pair for pair in pairs if pair[0].config.trunk == branch.config.trunk and shared(pair[0])]
    return max(same, key=lambda pair: shared(pair[0]), default=None)


def _branch(name: str, branch: Branch, other: Branch | None, names: Names, factor: Tensor) -> list[Part]:
    """Load trunk and predictors of a branch; `factor` (4,) converts box deltas of the source to those of the model."""
    trunk = _part(f"{name}: trunk", branch.trunk, other and other.trunk)
    parts = [trunk]
    for task, per_class in (("classifier", 1), ("regressor", 4)):
        predictor = getattr(branch, task)
        if predictor is None:
            continue
        given = getattr(other, task) if other is not None and not trunk.new else None
        taken, adapted = _rows(predictor, given, names, per_class) if given is not None else (0, 0)
        if per_class == 4 and (taken or adapted) and not factor.eq(1).all():
            predictor.weight.unflatten(0, (-1, 4)).mul_(factor[:, None])
            predictor.bias.unflatten(0, (-1, 4)).mul_(factor)
            taken, adapted = 0, taken + adapted
        parts.append(Part(f"{name}: {task}", taken, adapted, parameters(predictor) - taken - adapted))
    return parts


def _part(name: str, part: nn.Module, other: nn.Module | None) -> Part:
    """Copy each matching layer."""
    givers = dict(other.named_modules()) if other is not None else {}
    taken = 0
    for key, layer in part.named_modules():
        state, given = _state(layer), _state(givers.get(key))
        if state and {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in given.items()}:
            for field, value in state.items():
                value.copy_(given[field])
            taken += sum(p.numel() for p in layer.parameters(recurse=False))
    return Part(name, taken, 0, parameters(part) - taken)


def _state(layer: nn.Module | None) -> dict[str, Tensor]:
    """Weights and statistics of a layer, without its children."""
    if layer is None:
        return {}
    own = dict(layer.named_parameters(recurse=False)) | dict(layer.named_buffers(recurse=False))
    return {key: value for key, value in own.items() if key != "num_batches_tracked"}


def _rows(predictor: nn.Linear, given: nn.Linear, names: Names, per_class: int) -> tuple[int, int]:
    """Copy the rows of a predictor for the background and for common classes.

    Args:
        predictor: predictor to fill.
        given: predictor of the source.
        names: class names of both.
        per_class: outputs per class: 1, or 4 for boxes.

    Returns:
        Numbers of parameters copied as a whole, and copied row by row.
    """
    same_shape = predictor.weight.shape == given.weight.shape
    by_class = [
        layer.out_features == per_class * (len(classes) + 1)
        for layer, classes in zip((predictor, given), names, strict=True)
    ]
    if same_shape and (names[0] == names[1] or not any(by_class)):
        predictor.load_state_dict(given.state_dict())
        return parameters(predictor), 0
    places = {name: place for place, name in enumerate(names[1], 1)}
    known = [(place, places[name]) for place, name in enumerate(names[0], 1) if name in places]
    if not known or not all(by_class) or predictor.in_features != given.in_features:
        return 0, 0
    into, out = ([0, *column] for column in zip(*known, strict=True))
    for target, source in ((predictor.weight, given.weight), (predictor.bias, given.bias)):
        target.unflatten(0, (-1, per_class))[into] = source.unflatten(0, (-1, per_class))[out]
    return 0, len(into) * per_class * (predictor.in_features + 1)
