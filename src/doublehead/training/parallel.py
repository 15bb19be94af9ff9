"""The model as several processes train it: exchanged gradients, and batch norm."""

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
    """The module to call in training; with several processes, its gradients are those of all of them."""
    return DistributedDataParallel(model) if processes.world > 1 else model


def share_batch_norm(
    model: Detector, settings: TrainConfig, processes: Distribution, say: Callable[[str], object]
) -> None:
    """Let the backbone's batch norm see the images of all processes, if so set; otherwise say that it does not.

    Batch norm in the heads stays with its process: it sees hundreds of RoIs, and where a branch that only regresses has
    no positives it sees none, for which the other processes would wait.

    Raises:
        DoubleheadError: torch shares batch norm on CUDA alone.
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
    """Let DistributedDataParallel exchange gradients only with the last of the accumulated parts."""
    if wait and isinstance(learner, DistributedDataParallel):
        with learner.no_sync():
            yield
    else:
        yield
