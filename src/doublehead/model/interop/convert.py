"""Weights of other programs to checkpoints, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError, sentence
from doublehead.config import ModelConfig, override
from doublehead.data.coco import read_categories
from doublehead.model.checkpoint import FORMAT, Checkpoint, load_checkpoint, save_checkpoint
from doublehead.model.interop import PROGRAMS
from doublehead.model.interop.format import Format, Weights
from doublehead.model.weights import read_weights

FORMATS: dict[str, tuple[Format, ...]] = {
    program: import_module(f"doublehead.model.interop.{program}").FORMATS for program in PROGRAMS
}
"""By the name of their program. Of those that recognise a file, the last one is the most special."""

_LISTED = tuple(enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]))[1:]
COCO_WITH_GAPS = Categories(tuple(name for _, name in _LISTED), tuple(number for number, _ in _LISTED))
"""Ids 1..90 as torchvision's weights count them; `N/A` are ids that COCO does not use."""
_USED = tuple((number, name) for number, name in _LISTED if name != "N/A")
COCO = Categories(tuple(name for _, name in _USED), tuple(number for number, _ in _USED))
"""COCO's 80 classes."""


def convert(
    source: Path,
    destination: Path,
    categories: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    half: bool = False,
) -> str:
    """Write a checkpoint from weights of a program in FORMATS, which their keys tell apart.

    Args:
        source: .pth, .pkl (detectron2's) or .safetensors; a training program's checkpoint or the weights alone.
        destination: the checkpoint to write.
        categories: a COCO annotation file whose categories are the model's, in its order. None: the names in the
            source; else COCO's for 80 classes, and torchvision's for 90; else `class 1`, `class 2`, ...
        settings: values that the weights do not tell and that differ from the publisher's, by their keys, such as
            {"model.rpn.anchor_sizes": [16, 32, 64, 128, 256]}.
        half: write weights of 16 bits (fp16), half the size; they are loaded as float32.

    Returns:
        What the weights are, in words.

    Raises:
        DoubleheadError: the source is of no known format, not whole, or would run code; the destination exists.
    """
    _require_new(destination)
    if destination.suffix != ".safetensors":
        raise DoubleheadError(f"{destination}: a checkpoint's name ends in .safetensors")
    checkpoint, words = read(source, categories, settings)
    weights = {key: _halved(source, key, value) for key, value in checkpoint.weights.items()} if half else None
    destination.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        destination, checkpoint.config, checkpoint.categories, weights or checkpoint.weights, checkpoint.notes
    )
    return words


def _halved(source: Path, key: str, value: Tensor) -> Tensor:
    """A tensor in float16; integers stay as they are.

    Raises:
        DoubleheadError: a value exceeds float16's range.
    """
    if not value.is_floating_point():
        return value
    halved = value.half()
    if not halved.isfinite().all():
        raise DoubleheadError(f"{source}: {key} exceeds the range of 16-bit floats; convert without --half")
    return halved


def read(
    source: Path, categories: Path | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[Checkpoint, str]:
    """Weights of a program in FORMATS, or of ours, as a checkpoint, and what they are, in words.

    Args:
        source: as of `convert`.
        categories: as of `convert`.
        settings: as of `convert`.

    Raises:
        DoubleheadError: as `convert`.
    """
    weights, beside = read_weights(source)
    settings = settings or {}
    if strange := [key for key in settings if not key.startswith("model.")]:
        raise DoubleheadError(f"settings of a conversion begin with `model.`, unlike `{strange[0]}`")
    if beside.get("format") == FORMAT:
        return _with_settings(source, categories, settings)
    formats = [f for family in FORMATS.values() for f in family if f.recognises(weights)]
    if not formats:
        known = "; ".join(f.name for family in FORMATS.values() for f in family)
        raise DoubleheadError(f"{source}: its keys ({', '.join(list(weights)[:3])}, ...) are of none of these: {known}")
    try:
        config, classes, ours = formats[-1].load(
            weights, {key.removeprefix("model."): value for key, value in settings.items()}
        )
    except ValidationError as error:
        raise DoubleheadError(f"settings: {sentence(error)}") from error
    except DoubleheadError as error:
        raise DoubleheadError(f"{source}: {error}") from error
    named = read_categories(categories) if categories else _named(classes, beside)
    if len(named) != classes:
        raise DoubleheadError(f"{categories}: has {len(named)} categories, but {source} {classes}")
    words = f"{formats[-1].name}: {config.backbone.name}, {classes} classes ({', '.join(named.names[:3])}, ...)"
    return Checkpoint(config, named, ours, {}, {"converted_from": formats[-1].name}), words


def _with_settings(source: Path, categories: Path | None, settings: Mapping[str, Any]) -> tuple[Checkpoint, str]:
    """A checkpoint of ours with other settings, such as defaults for its inference options.

    Raises:
        DoubleheadError: a setting is not known or would change the weights; or other categories are asked for.
    """
    if categories:
        raise DoubleheadError(f"{source}: has its own classes, so --categories does not apply")
    checkpoint = load_checkpoint(source)
    changed = {key.removeprefix("model."): value for key, value in settings.items()}
    try:
        config = ModelConfig.model_validate(override(checkpoint.config.model_dump(mode="json"), changed))
        checkpoint = replace(checkpoint, config=config, training={})
        checkpoint.require_fit()
    except ValidationError as error:
        raise DoubleheadError(f"settings: {sentence(error)}") from error
    except RuntimeError as error:
        raise DoubleheadError(
            f"{source}: its weights do not fit these settings ({str(error).splitlines()[-1].strip()})"
        ) from error
    return checkpoint, f"{config.preset}: {len(checkpoint.categories)} classes, with {len(settings)} settings changed"


def convert_back(source: Path, destination: Path, program: str) -> None:
    """Write a checkpoint's weights under another program's keys.

    Args:
        source: a checkpoint whose model computes as that program does, such as a converted one, trained further or not.
        destination: .pth, or .safetensors for the weights alone.
        program: a key of FORMATS.

    Raises:
        DoubleheadError: the program computes something else, or is not known; the destination exists.
    """
    if program not in FORMATS:
        raise DoubleheadError(f"unknown program `{program}`: choose {', '.join(FORMATS)}")
    _require_new(destination)
    checkpoint = load_checkpoint(source)
    weights, reasons = None, []
    for candidate in FORMATS[program]:
        try:
            weights = candidate.save(checkpoint.config, checkpoint.weights)
        except DoubleheadError as error:
            reasons.append(str(error))
    if weights is None:
        nearest = next((reason for reason in reasons if reason.startswith("computes")), reasons[0])
        raise DoubleheadError(f"{source}: cannot be written for {program}: it {nearest}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.writing")
    if destination.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in weights.items()}, temporary)
    else:
        torch.save(HOLDERS[program](weights, checkpoint.categories.names), temporary)
    os.replace(temporary, destination)


HOLDERS: dict[str, Callable[[Weights, tuple[str, ...]], dict[str, Any]]] = {
    "mmdetection": lambda weights, names: {"meta": {"CLASSES": names}, "state_dict": weights},
    "detectron2": lambda weights, names: {"model": weights},
    "authors": lambda weights, names: {"model": weights},
    "torchvision": lambda weights, names: weights,
}
"""What a program's .pth holds."""


def _require_new(destination: Path) -> None:
    if destination.exists():
        raise DoubleheadError(f"{destination}: exists already; remove it or give another name")


def _named(classes: int, beside: Mapping[str, Any]) -> Categories:
    """The classes by the names in MMDetection's notes, or else by their number."""
    notes = beside.get("meta")
    notes = notes if isinstance(notes, dict) else {}
    notes = notes | (notes["dataset_meta"] if isinstance(notes.get("dataset_meta"), dict) else {})
    names = notes.get("CLASSES") or notes.get("classes")
    if isinstance(names, list | tuple) and len(names) == classes and all(isinstance(name, str) for name in names):
        return COCO if tuple(names) == COCO.names else Categories(tuple(names), tuple(range(1, classes + 1)))
    for known in (COCO, COCO_WITH_GAPS):
        if classes == len(known):
            return known
    return Categories(tuple(f"class {n}" for n in range(1, classes + 1)), tuple(range(1, classes + 1)))
