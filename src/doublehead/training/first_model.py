"""Initial model of a run."""

from __future__ import annotations

import torch

from doublehead.common.console import Console
from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError
from doublehead.config import Config
from doublehead.data.records import Split
from doublehead.model.checkpoint import adopt
from doublehead.model.detector import Detector
from doublehead.model.grow import grow, growth_table
from doublehead.training.class_weights import class_weights
from doublehead.training.parallel import share_batch_norm


def require_start(config: Config) -> None:
    """Reject frozen layers with random weights.

    Raises:
        DoubleheadError: a backbone without weights has frozen layers or norms.
    """
    backbone, settings = config.model.backbone, config.train
    scratch = backbone.weights is None and not (settings.weights or settings.grow_from)
    if scratch and (backbone.trainable_stages < 5 or backbone.norm == "frozen"):
        raise DoubleheadError(
            "a backbone without weights must learn all its stages and norms: set model.backbone.trainable_stages=5 "
            "and model.backbone.norm=group, or give model.backbone.weights"
        )


def first_model(
    config: Config, split: Split, processes: Distribution, console: Console, bare: bool = False
) -> Detector:
    """Build the model with the weights named by the config, on the device of this process.

    Args:
        config: config of the run.
        split: training split.
        processes: the processes of the run.
        console: prints which layers are new.
        bare: whether to skip loading weights, for a model to be restored from a checkpoint.

    Raises:
        DoubleheadError: the weights cannot be downloaded or do not fit, or a class has no weight.
    """
    settings = config.train
    torch.manual_seed(settings.seed)
    fresh = not (bare or settings.weights or settings.grow_from)
    model = Detector(config.model, len(split.categories), pretrained=fresh)
    if settings.weights and not bare:
        new = adopt(model, split.categories, settings.weights, settings.partial_weights)
        layers = sorted({key.rpartition(".")[0] for key in new})
        console.say(f"starting from {settings.weights}; new are {', '.join(layers) or 'no layers'}")
    if settings.grow_from and not bare:
        parts = grow(model, split.categories, settings.grow_from, settings.partial_weights)
        console.show(growth_table(parts, settings.grow_from))
    if settings.class_weights is not None:
        model.roi_heads.weigh_classes(class_weights(settings.class_weights, split))
    model.backbone.recompute = settings.checkpoint_backbone
    model.to(processes.device).to(memory_format=torch.channels_last)
    share_batch_norm(model, settings, processes, console.say)
    return model
