"""Recipes: named settings of `data` and `train`; and how a run's Config comes about from all that was said of it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublehead.common.errors import DoubleheadError, sentence

if TYPE_CHECKING:
    from doublehead.config import Config

ADAMW: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup_steps": 100,
    "warmup_start": 0.01,
    "steps": None,
    "batch_size": 4,
    "clip_norm": 10.0,
    "ema": 0.998,
}
SMALL_SIDE = 480
"""Largest short side of the input, in pixels, for which `small` is the recipe of a pretrained model."""

RECIPES: dict[str, dict[str, Any]] = {
    # The paper's "1x": flip, 800/1333, SGD 0.02 for 16 images, 90k steps, tenfold falls at 60k and 80k.
    "coco-1x": {"train": {"steps": 90_000, "epochs": None, "clip_norm": None}},
    # A user's own images from ImageNet weights: short sides at random, a quarter of the batch and of its rate.
    "finetune": {
        "data": {"augment": {"short_sides": [640, 672, 704, 736, 768, 800]}},
        "train": {
            "steps": None,
            "epochs": 24,
            "batch_size": 4,
            "lr": 0.005,
            "warmup_steps": 200,
            "clip_norm": 10.0,
        },
    },
    # Small images and little data, from pretrained weights.
    "small": {
        "data": {"augment": {"colour": 0.5}},
        "train": {**ADAMW, "epochs": 12},
    },
    # Small data without pretrained weights.
    "scratch": {
        "data": {"augment": {"colour": 0.5}},
        "train": {**ADAMW, "epochs": 30},
    },
}


LENGTHS = {"steps", "epochs"}


def resolve(
    model: str | None = None,
    recipe: str | None = None,
    file: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    backbone: str | None = None,
) -> Config:
    """The Config of a run. Later words win: recipe, preset, backbone, file, settings.

    Args:
        model: a preset, or a trained model to start from (a checkpoint or a published name); None where `file`
            describes the model.
        recipe: a row of RECIPES; None: `scratch` for a backbone without weights, `small` for small inputs, else
            `finetune`, and none where `file` holds a `train` part.
        file: YAML with any part of a Config, such as the config.yaml of an earlier run.
        settings: single values by their keys, such as {"train.epochs": 10}.
        backbone: a row of BACKBONES, or the name of a model of timm, in place of the preset's.

    Raises:
        DoubleheadError: an unknown preset, recipe or key, or a value that does not fit.
    """
    from pydantic import ValidationError  # here: `train --help` names the recipes without it

    from doublehead.config import Config, merge, override, read_yaml, renewed

    settings = settings or {}
    from_file = read_yaml(file) if file else {}
    if "model" in from_file:
        from_file["model"] = renewed(from_file["model"])
    if model is None and "model" not in from_file:
        raise DoubleheadError(
            "which model? give --model, such as --model double-head-r50; `doublehead models` lists them"
        )
    chosen = merge(_model(model) if model else {}, {"model": _backbone(backbone)} if backbone else {})
    said = _override(merge(chosen, from_file), settings)
    if recipe is None and not from_file.get("train"):
        recipe = _recipe(_part(said, "model"))
    if recipe is not None and recipe not in RECIPES:
        near = difflib.get_close_matches(recipe, RECIPES, 1) or list(RECIPES)
        raise DoubleheadError(f"unknown recipe `{recipe}`: did you mean {' or '.join(near)}?")
    whole = merge(RECIPES[recipe], said) if recipe else said
    for layer in (override({}, settings), from_file):  # a length said last takes the place of any other
        named = LENGTHS & _part(layer, "train").keys()
        if len(named) == 1:
            _part(whole, "train")[(LENGTHS - named).pop()] = None
        if named:
            break
    try:
        return Config.model_validate(whole)
    except ValidationError as error:
        keys = {".".join(map(str, item["loc"])) for item in error.errors()}
        where = file if file and not keys <= settings.keys() else "settings"
        raise DoubleheadError(f"{where}: {sentence(error)}") from error


def _recipe(model: dict[str, Any]) -> str:
    """The recipe that suits a model's settings: by its weights and the size of its input."""
    if _part(model, "backbone").get("weights", "imagenet") is None:
        return "scratch"
    return "small" if _part(model, "input").get("short_side", 800) <= SMALL_SIDE else "finetune"


def _override(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`override`, to which a listed `data.augment` shows its steps by their names."""
    from doublehead.config import merge, override
    from doublehead.data.steps import listed

    augment = _part(values, "data").get("augment")
    if not isinstance(augment, list):
        return override(values, settings)
    said = override(merge(values, {"data": {"augment": {"steps": augment}}}), settings)
    said["data"]["augment"] = listed(said["data"]["augment"])
    return said


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key, or an empty one where the user wrote something else, which validation will name."""
    part = values.get(key)
    return part if isinstance(part, dict) else {}


def _model(name: str) -> dict[str, Any]:
    """A preset's settings, or those of a trained model and where its weights are."""
    from doublehead.model.presets import PRESETS, preset_values

    if name in PRESETS:
        return {"model": preset_values(name)}
    from doublehead.model.checkpoint import load_checkpoint  # here: presets need no torch
    from doublehead.model.interop import published

    if name not in published.PUBLISHED and not Path(name).is_file():
        return {"model": preset_values(name)}
    path = published.resolve(name)
    return {"model": load_checkpoint(path).config.model_dump(mode="json"), "train": {"weights": str(path)}}


def _backbone(name: str) -> dict[str, Any]:
    """A pretrained backbone's settings.

    Raises:
        DoubleheadError: neither a row of BACKBONES nor timm has it.
    """
    from doublehead.model.parts import BACKBONES

    pretrained = {"weights": "imagenet", "norm": "frozen", "trainable_stages": 3}
    if name in BACKBONES:
        row = BACKBONES[name]
        return {"backbone": {"name": name, **pretrained}, "input": {"mean": list(row.mean), "std": list(row.std)}}
    from doublehead.model.timm_body import pretrained_defaults

    return {"backbone": {"name": "timm", "timm": {"model": name}, **pretrained}, "input": pretrained_defaults(name)}
