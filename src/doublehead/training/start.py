"""Public entry points: start or resume a training run."""

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
    """Train a detector and write everything about the run to a new folder.

        best = doublehead.train("data", "double-head-tiny", "runs/first", settings={"train.epochs": 10})
        doublehead.load(best).predict("photo.jpg")

    Args:
        data: dataset folder, or a YAML file that names its splits; `config` may give it instead. Also accepts a Python
            dataset: a sequence of (image, {"boxes", "labels"}), or one per split, as {"train": ..., "val": ...}; see
            `data.own.own_dataset`.
        model: preset (`doublehead models` lists them), or a checkpoint or published name to fine-tune. None: that of
            `config`, otherwise double-head-fused-lite.
        output: run folder; must be new. None: a folder in runs, named after the data and the model.
        recipe: row of `recipes.RECIPES`; None: chosen by the model.
        config: YAML file with any settings, such as the config.yaml of an earlier run.
        device: auto, cpu, cuda or a card such as cuda:1.
        settings: any other settings, by key.
        backbone: pretrained backbone that replaces the model's: resnet18, 34, 50 or 101, or a timm model such as
            convnext_tiny.fb_in22k_ft_in1k.
        from_: trained detector from which the preset `model` takes backbone, FPN, RPN and matching heads: a checkpoint,
            a published name, or a file that `convert` reads.
        classes: class names, if `data` is a Python dataset without a `classes` attribute.
        callbacks: objects with methods of `doublehead.Callback`.
        log: recorders in addition to `train.recorders`: tensorboard, wandb, mlflow.

    Returns:
        The path of the best checkpoint.

    Raises:
        DoubleheadError: the data, the settings or the folder are invalid, a loss is not finite, or a callback failed.
        Fault: memory, disk, a loader process or another process of the run failed; the run can be resumed.
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
        run: run folder.
        other_data: resume even if the data has changed.
        data: the Python dataset, if the run was started with one.
        classes: as in `train`.
        settings: settings to change for the rest of the run; `changes.MAY_CHANGE` lists those allowed.
        callbacks: as in `train`; callbacks are not stored, so pass them again.
        log: as in `train`.

    Returns:
        The path of the best checkpoint.

    Raises:
        DoubleheadError: the folder holds no run, the data has changed, a setting may not change, or as in `train`.
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
    """Settings that add recorders to those of the config."""
    return {"train.recorders": [*config.train.recorders, *log]} if log else {}
