"""Settings that may change when a run resumes: those that its state does not depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from doublehead.common.errors import DoubleheadError, sentence
from doublehead.config import Config, override
from doublehead.training.recipes import one_length

MAY_CHANGE: dict[str, str] = {
    "train.epochs": "the run's length; rate and validations follow the new one",
    "train.steps": "likewise, in steps",
    "train.lr": "peak learning rate",
    "train.schedule": "how the rate falls",
    "train.milestones": "where it falls",
    "train.clip_norm": "limit of the gradient's norm",
    "train.patience": "validations without improvement before the run stops",
    "train.evaluate_every": "epochs between validations",
    "train.accumulate": "forward passes per step, to save memory",
    "train.precision": "number format",
    "train.device": "where to compute",
    "train.sync_batch_norm": "batch statistics of all processes",
    "train.checkpoint_backbone": "less memory, more time",
    "train.recorders": "what follows the run",
    "train.log_every": "steps between rows of training.csv",
    "train.save_minutes": "time between two savings",
    "train.skip_not_finite": "steps that may be skipped",
    "train.timeout": "wait for another process",
    "data.path": "where the dataset lies now",
    "data.workers": "loader processes",
    "data.timeout": "wait for a batch",
    "data.check": "how images are looked at before training",
}
"""Settings that `resume --set` accepts, with descriptions."""


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a run's config with changed settings for the rest of the run.

    Args:
        config: config of the run so far.
        settings: values by key.

    Raises:
        DoubleheadError: a setting may not change, or a value is invalid.
    """
    for key in settings:
        if key not in MAY_CHANGE:
            raise DoubleheadError(
                f"{key}: cannot change when a run resumes, only {', '.join(MAY_CHANGE)} can; for others, start a new "
                "run from these weights: doublehead train DATA --model RUN/best.safetensors"
            )
    values = override(config.model_dump(mode="json"), settings)
    one_length(values, override({}, settings))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise DoubleheadError(f"settings: {sentence(error)}") from error


def differences(old: Config, new: Config) -> dict[str, list[Any]]:
    """Return the settings of MAY_CHANGE that differ, each with its old and new value."""
    pairs = {key: [_value(config, key) for config in (old, new)] for key in MAY_CHANGE}
    return {key: [before, after] for key, (before, after) in pairs.items() if before != after}


def _value(config: Config, key: str) -> Any:
    part, name = key.split(".")
    return getattr(config, part).model_dump(mode="json")[name]
