"""Recipes: named settings of `data` and `train`; and the resolution of a run's Config from all sources."""

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
"""Maximum short side of the input, in pixels, for which pretrained models default to the recipe `small`."""

RECIPES: dict[str, dict[str, Any]] = {
    # The paper's "1x": flip, 800/1333, SGD 0.02 for 16 images, 90k steps, tenfold falls at 60k and 80k.
    "coco-1x": {"train": {"steps": 90_000, "epochs": None, "clip_norm": None}},
    # detectron2's "3x": short sides at random, warm-up over 1000 steps from 1/1000, falls at 210k and 250k of 270k.
    "coco-3x": {
        "data": {"augment": {"short_sides": [640, 672, 704, 736, 768, 800]}},
        "train": {
            "steps": 270_000,
            "epochs": None,
            "milestones": [7 / 9, 25 / 27],
            "warmup_steps": 1000,
            "warmup_start": 0.001,
            "clip_norm": None,
        },
    },
    # Large-scale jitter as of detectron2's new baselines: 100 epochs of COCO; there are 200 and 400 too.
    "coco-lsj": {
        "data": {
            "augment": {
                "steps": [{"lsj": {"size": 1024, "scale": [0.1, 2.0], "visible": 0.0}}, {"flip": {"p": 0.5}}],
            }
        },
        "train": {
            "lr": 0.1,
            "weight_decay": 4e-5,
            "batch_size": 64,
            "steps": 184_375,
            "epochs": None,
            "milestones": [163_889 / 184_375, 177_546 / 184_375],
            "warmup_start": 0.067,
            "clip_norm": None,
            "sync_batch_norm": True,
        },
    },
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
_AUGMENT = "data.augment"
_ALL_STEPS = {"steps", "use"}  # keys of `data.augment` that leave nothing of the steps before


def resolve(
    model: str | None = None,
    recipe: str | None = None,
    file: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    grow_from: str | None = None,
) -> Config:
    """Resolve the Config of a run from all sources.

    Later sources take precedence: recipe, preset, backbone, `grow_from`, file, settings.

    Args:
        model: preset, or checkpoint or published name to start from; None: that of `file`, otherwise SMALL_DATA_MODEL.
        recipe: row of RECIPES; None: `scratch` for a backbone without weights, `small` for small inputs, otherwise
            `finetune`; no recipe if `file` contains `train`.
        file: YAML with any part of a Config, such as the config.yaml of an earlier run.
        settings: single values by key, such as {"train.epochs": 10}.
        backbone: row of BACKBONES or timm model that replaces the preset's backbone.
        grow_from: detector from which the model takes backbone, FPN, RPN and matching heads; see `model.grow`. None:
            `train.grow_from` in `settings` or `file`.

    Raises:
        DoubleheadError: a preset, recipe or key is unknown, a value is invalid, or `grow_from` has another backbone.
    """
    from pydantic import ValidationError  # here: `train --help` names the recipes without it

    from doublehead.config import Config, merge, read_yaml, renewed
    from doublehead.model.presets import SMALL_DATA_MODEL

    settings = settings or {}
    from_file = read_yaml(file) if file else {}
    if "model" in from_file:
        from_file["model"] = renewed(from_file["model"])
    if model is None and "model" not in from_file:
        model = SMALL_DATA_MODEL
    chosen = merge(_model(model) if model else {}, {"model": _backbone(backbone)} if backbone else {})
    said = _override(merge(chosen, from_file), settings)
    grow_from = grow_from or _part(said, "train").get("grow_from")
    if grow_from:
        form = _form(grow_from, said)
        said = _override(merge(merge(chosen, form), from_file), {**settings, "train.grow_from": grow_from})
    if recipe is None and not from_file.get("train"):
        recipe = _recipe(_part(said, "model"), bool(grow_from))
    if recipe is not None and recipe not in RECIPES:
        near = difflib.get_close_matches(recipe, RECIPES, 1) or list(RECIPES)
        raise DoubleheadError(f"unknown recipe `{recipe}`: did you mean {' or '.join(near)}?")
    whole = merge(_recipe_values(recipe, said), said) if recipe else said
    one_length(whole, _override({}, settings), from_file)
    try:
        return Config.model_validate(whole)
    except ValidationError as error:
        keys = {".".join(map(str, item["loc"])) for item in error.errors()}
        where = file if file and not keys <= settings.keys() else "settings"
        raise DoubleheadError(f"{where}: {sentence(error)}") from error


def one_length(values: dict[str, Any], *layers: dict[str, Any]) -> None:
    """Replace the length in `values` (epochs or steps) by that of the first layer that names one."""
    for layer in layers:
        named = LENGTHS & _part(layer, "train").keys()
        if len(named) == 1:
            _part(values, "train")[(LENGTHS - named).pop()] = None
        if named:
            break


def _recipe(model: dict[str, Any], grown: bool) -> str:
    """Default recipe of a model, by its weights and input size."""
    if _part(model, "backbone").get("weights", "imagenet") is None and not grown:
        return "scratch"
    return "small" if _part(model, "input").get("short_side", 800) <= SMALL_SIDE else "finetune"


def _override(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`override` that can address the steps of a listed or named `data.augment` by name."""
    from doublehead.config import override

    augment = settings.get(_AUGMENT, _part(values, "data").get("augment"))
    if not isinstance(augment, list | str):
        return override(values, settings)
    others = {key: value for key, value in settings.items() if key != _AUGMENT}
    return override(values, {_AUGMENT: {"steps": augment}, **others})


def _recipe_values(recipe: str, said: dict[str, Any]) -> dict[str, Any]:
    """Values of a recipe, without its augmentation if all steps are given explicitly."""
    values = RECIPES[recipe]
    if _ALL_STEPS & _part(_part(said, "data"), "augment").keys():
        return {**values, "data": {key: value for key, value in values.get("data", {}).items() if key != "augment"}}
    return values


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key, or an empty one for other values, which validation will report."""
    part = values.get(key)
    return part if isinstance(part, dict) else {}


def _model(name: str) -> dict[str, Any]:
    """Settings of a preset, or those of a trained model with the path of its weights."""
    from doublehead.config import unfitted
    from doublehead.model.presets import PRESETS, preset_values

    if name in PRESETS:
        return {"model": preset_values(name)}
    from doublehead.model.checkpoint import load_checkpoint  # here: presets need no torch
    from doublehead.model.interop import published

    if name not in published.PUBLISHED and not Path(name).is_file():
        return {"model": preset_values(name)}
    path = published.resolve(name)
    config = unfitted(load_checkpoint(path).config)
    return {"model": config.model_dump(mode="json"), "train": {"weights": str(path)}}


def _form(source: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Settings of the parts that a model takes from another detector.

    Args:
        source: checkpoint, published name, or file that `convert` reads.
        asked: the other settings of the run.

    Raises:
        DoubleheadError: the source cannot be read or has another backbone; or the model is already trained.
    """
    from pydantic import ValidationError

    from doublehead.config import BackboneConfig
    from doublehead.model.grow import form, read_source
    from doublehead.model.presets import matching

    if trained := _part(asked, "train").get("weights"):
        raise DoubleheadError(
            f"{trained} is a trained model, so it cannot grow from {source}: give a preset as the model, such as "
            "double-head-r50"
        )
    found = read_source(source).config
    try:
        wanted = BackboneConfig.model_validate(_part(_part(asked, "model"), "backbone"))
    except ValidationError as error:
        raise DoubleheadError(f"model.backbone: {sentence(error)}") from error
    if wanted.network != found.backbone.network:
        fitting = matching(found.backbone.network)
        raise DoubleheadError(
            f"{source}: has a {found.backbone.network}, not a {wanted.network}: choose a model with that backbone"
            + (f", such as {fitting}" if fitting else "")
        )
    return {"model": form(found)}


def _backbone(name: str) -> dict[str, Any]:
    """Settings of a pretrained backbone.

    Raises:
        DoubleheadError: the backbone is neither a row of BACKBONES nor a timm model.
    """
    from doublehead.model.parts import BACKBONES, BackboneRow

    pretrained = {"weights": "imagenet", "norm": "frozen", "trainable_stages": 3}
    if name in BACKBONES:
        row = BACKBONES[name]
        values = {"backbone": {"name": name, **pretrained}, "input": {"mean": list(row.mean), "std": list(row.std)}}
        fewer = len(row.strides) != len(BackboneRow.strides)
        return values | ({"rpn": {"anchor_sizes": list(row.anchor_sizes)}} if fewer else {})
    from doublehead.model.timm_body import pretrained_defaults

    return {"backbone": {"name": "timm", "timm": {"model": name}, **pretrained}, "input": pretrained_defaults(name)}
