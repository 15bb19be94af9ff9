"""Batches of a run, by its config."""

from __future__ import annotations

from collections.abc import Iterator

from doublehead.common.distribution import Distribution
from doublehead.config import Config
from doublehead.data.loader import default_workers, steps_per_epoch, training_dataset, training_loader
from doublehead.data.records import Split
from doublehead.data.sampling import images_per_epoch, sampling_factors
from doublehead.training.step import Batch


def steps_of_epoch(config: Config, split: Split) -> int:
    """Optimiser steps per epoch, including repetitions by sampling."""
    factors = sampling_factors(split.records, config.data.repeat_threshold, config.data.image_weights)
    return steps_per_epoch(images_per_epoch(len(split.records), factors), config.train.batch_size)


def workers_of(config: Config, processes: Distribution) -> int:
    """Number of this process's loader processes; 0: it loads images itself."""
    return default_workers(processes.local) if config.data.workers is None else config.data.workers


def batches_of(
    config: Config, split: Split, processes: Distribution, start: int, total: int, workers: int | None = None
) -> Iterator[Batch]:
    """Iterate over this process's parts of the batches, `train.accumulate` per step.

    Args:
        config: config of the run.
        split: training split.
        processes: the processes of the run.
        start: first step, from 0.
        total: steps of the whole run; augmentation may differ in the last tenth.
        workers: loader processes; None: by the config.

    Raises:
        DoubleheadError: as in `training_loader`.
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
