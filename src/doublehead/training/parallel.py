"""Distributed training of the model: gradient exchange and batch norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError
from doublehead.config import TrainConfig
from doublehead.model.detector import Detector


def learner(model: Detector, processes: Distribution) -> nn.Module:
    """Return the module to call in training. With several processes, gradients are averaged among them."""
    return DistributedDataParallel(model) if processes.world > 1 else model


def share_batch_norm(
    model: Detector, settings: TrainConfig, processes: Distribution, say: Callable[[str], object]
) -> None:
    """Synchronise the backbone's batch norm among processes, if configured; otherwise print that it is local.

    Batch norm in the heads is never synchronised: it sees hundreds of RoIs per process, and none in a box-only branch
    without positives, for which the other processes would wait.

    Raises:
        DoubleheadError: the device is not CUDA, which torch requires for synchronised batch norm.
    """
    if processes.world == 1:
        return
    if settings.sync_batch_norm and processes.device.type != "cuda":
        raise DoubleheadError(
            f"train.sync_batch_norm needs CUDA, and this run is on {processes.device}: set it to false, or "
            "model.backbone.norm to group"
        )
    if settings.sync_batch_norm:
        model.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(model.backbone)
    elif any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        images = settings.batch_size // (processes.world * settings.accumulate)
        say(
            f"batch norm takes its statistics from the {images} images of one process; train.sync_batch_norm=true "
            "shares them in the backbone"
        )


@contextmanager
def no_sync(learner: nn.Module, wait: bool) -> Iterator[None]:
    """Context that delays DistributedDataParallel's gradient exchange until the last accumulated part."""
    if wait and isinstance(learner, DistributedDataParallel):
        with learner.no_sync():
            yield
    else:
        yield
