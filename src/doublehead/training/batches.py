"""The batches of a run, as its config asks for them."""

from __future__ import annotations

from collections.abc import Iterator

from doublehead.common.distribution import Distribution
from doublehead.config import Config
from doublehead.data.loader import default_workers, steps_per_epoch, training_dataset, training_loader
from doublehead.data.records import Split
from doublehead.data.sampling import images_per_epoch, sampling_factors
from doublehead.training.step import Batch


def steps_of_epoch(config: Config, split: Split) -> int:
    """Steps in which a run sees its images once, or as often as sampling says."""
    factors = sampling_factors(split.records, config.data.repeat_threshold, config.data.image_weights)
    return steps_per_epoch(images_per_epoch(len(split.records), factors), config.train.batch_size)


def workers_of(config: Config, processes: Distribution) -> int:
    """Loader processes of this process; 0: it loads images itself."""
    return default_workers(processes.local) if config.data.workers is None else config.data.workers


def batches_of(
    config: Config, split: Split, processes: Distribution, start: int, total: int, workers: int | None = None
) -> Iterator[Batch]:
    """The parts of batches that this process takes, `train.accumulate` a step.

    Args:
        config: of the run.
        split: what it trains on.
        processes: this process among those of the run.
        start: the first step, from 0.
        total: steps of the whole run, whose last tenth may be augmented otherwise.
        workers: loader processes; None: as the config says.

    Raises:
        DoubleheadError: as `training_loader`.
    """
    settings, data = config.train, config.data
    return training_loader(
        training_dataset(split, config),
        settings.batch_size,
        settings.batch_size // (processes.world * settings.accumulate),
        processes.rank,
        processes.world,
        settings.seed,
        start,
        total,
        workers_of(config, processes) if workers is None else workers,
        data.timeout,
        pin=processes.device.type == "cuda",
        factors=sampling_factors(split.records, data.repeat_threshold, data.image_weights),
    )
