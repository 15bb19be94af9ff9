"""The public entry points: begin a run, or resume one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError
from doublehead.config import Config
from doublehead.data.own import is_own, own_dataset
from doublehead.training.changes import changed
from doublehead.training.loop import run_training
from doublehead.training.recipes import resolve
from doublehead.training.run import RunFolder


def train(
    data: str | Path | Any | None = None,
    model: str | None = None,
    output: str | Path | None = None,
    *,
    recipe: str | None = None,
    config: str | Path | None = None,
    device: str | None = None,
    settings: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    from_: str | None = None,
    classes: Sequence[str] | None = None,
    callbacks: Sequence[Any] = (),
    log: Sequence[str] = (),
) -> Path:
    """Train a detector; everything about the run is written into a folder of its own.

        best = doublehead.train("data", "double-head-tiny", "runs/first", settings={"train.epochs": 10})
        doublehead.load(best).predict("photo.jpg")

    Args:
        data: the dataset's folder, or a YAML file that names its splits; may stand in `config`. Or a dataset itself: a
            sequence of (image, {"boxes", "labels"}), or such by split, as {"train": ..., "val": ...}; see
            `data.own.own_dataset`.
        model: a preset (`doublehead models` lists them), or a trained model to start from: a checkpoint or a published
            name; may stand in `config`.
        output: the run folder, a new one; None: one in runs, named after the data and the model.
        recipe: a row of `recipes.RECIPES`; None: by the model.
        config: a YAML file with any settings, such as the config.yaml of an earlier run.
        device: auto, cpu, cuda, cuda:1.
        settings: any other settings by their keys.
        backbone: a pretrained backbone in place of the model's: resnet18, 34, 50 or 101, or a model of timm such as
            convnext_tiny.fb_in22k_ft_in1k.
        from_: a trained detector whose backbone, FPN, RPN and fitting heads `model`, a preset, takes: a checkpoint, a
            published name, or a file that `convert` reads.
        classes: names of the classes, if `data` is a dataset itself without `classes` of its own.
        callbacks: objects with methods of `doublehead.Callback`, which the run calls.
        log: recorders beside those of `train.recorders`: tensorboard, wandb, mlflow.

    Returns:
        The path of the best checkpoint.

    Raises:
        DoubleheadError: the data, the settings or the folder have a mistake, a loss is not finite, or a callback
            failed.
        Fault: memory, disk, a loader process or another process of the run failed; the run is kept.
        Interrupted: Ctrl-C or SIGTERM; the run is saved.
    """
    own = own_dataset(data, classes) if data is not None and is_own(data) else None
    named = {"data.path": str(data) if data and own is None else None, "train.device": device}
    flags = {key: value for key, value in named.items() if value}
    resolved = resolve(model, recipe, Path(config) if config else None, flags | dict(settings or {}), backbone, from_)
    resolved = changed(resolved, _recorders(resolved, log))
    if output is None and Distribution.many():
        raise DoubleheadError("give --output: all processes, also restarted ones, share one run folder")
    name = f"{Path(resolved.data.path).name or 'own'}-{resolved.model.preset}"
    folder = Path(output) if output else RunFolder.free(name)
    return run_training(resolved, folder, dataset=own, callbacks=callbacks)


def resume(
    run: str | Path,
    other_data: bool = False,
    data: Any | None = None,
    classes: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    log: Sequence[str] = (),
) -> Path:
    """Resume an interrupted run, or continue a finished one with more epochs.

        doublehead.resume("runs/first", settings={"train.epochs": 20})

    Args:
        run: the run's folder.
        other_data: resume even if the data has changed since.
        data: the dataset itself, if the run was given one.
        classes: as of `train`.
        settings: settings that change from here on; `changes.MAY_CHANGE` lists those that may.
        callbacks: as of `train`; those of the run before are not remembered.
        log: as of `train`.

    Returns:
        The path of the best checkpoint.

    Raises:
        DoubleheadError: the folder holds no run, the data has changed, a setting may not change, or as `train`.
        Interrupted: Ctrl-C or SIGTERM; the run is saved.
    """
    if data is not None and not is_own(data):
        raise DoubleheadError(f"{data}: is a path; the run's config.yaml says where its data lies, so leave `data` out")
    folder = RunFolder(Path(run))
    own = None if data is None else own_dataset(data, classes)
    config = changed(folder.stored_config(), settings or {})
    config = changed(config, _recorders(config, log))
    return run_training(config, folder.path, True, other_data, own, callbacks)


def _recorders(config: Config, log: Sequence[str]) -> dict[str, Any]:
    """The settings that add recorders to a run's own."""
    return {"train.recorders": [*config.train.recorders, *log]} if log else {}
