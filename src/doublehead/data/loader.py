"""Batches, divided among ranks. They are independent of the number of workers and of interruptions."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from doublehead.common.errors import DoubleheadError, Fault
from doublehead.common.faults import SECOND_IMPORT, allow_open_files
from doublehead.config import LOADER_TIMEOUT, Config
from doublehead.data.check import read_record
from doublehead.data.images import to_tensor
from doublehead.data.records import Record, Split
from doublehead.data.sampling import epoch_order, images_per_epoch
from doublehead.data.transforms import Sample, Step, StepError, training_transform

LAST = 10
"""Augmentation changes for the last 1/LAST of a run (steps with `closes`)."""


class Key(NamedTuple):
    """Everything besides the seed that determines an augmented image."""

    epoch: int
    record: int  # its index
    showing: int = 0  # how often the image has been shown before in the same epoch
    closing: bool = False  # whether it is for the end of a run


Target = dict[str, Any]
Item = TypeVar("Item")

_STOPPING = (signal.SIGINT, signal.SIGTERM)

UNGUARDED = (
    "the script ran a second time in a process that was to load images, as the start methods spawn and forkserver do: "
    'put what it does under `if __name__ == "__main__":`, or set data.workers to 0'
)


class Samples(Sequence[Sample]):
    """Images of a split without augmentation, with the boxes and labels for training."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        record = self.records[index]
        image = tv_tensors.Image(to_tensor(read_record(record)))
        xyxy, labels = record.training_boxes()
        size = (record.height, record.width)
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(xyxy), format="XYXY", canvas_size=size)
        return image, boxes, torch.from_numpy(labels)


class DetectionDataset(torch.utils.data.Dataset[tuple[torch.Tensor, Target]]):
    """Augmented training images. `dataset[epoch, index]` is deterministic for a seed.

    Repetitions of an image in an epoch are augmented differently: `dataset[epoch, index, 1]` is the second.

    Items are an image, uint8 (3, H, W), and its target: `boxes` float32 (N, 4) xyxy, `labels` int64 (N,), `image_id`
    and `index` of the record.

    Args:
        split: the images.
        transform: augmentation.
        seed: seed of the run.
        closing: augmentation in the last tenth of a run; None: `transform`.
    """

    def __init__(self, split: Split, transform: Step, seed: int, closing: Step | None = None) -> None:
        self.records = split.records
        self.classes = len(split.categories)
        self.samples = Samples(split.records)
        self.transform, self.closing = transform, closing or transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, ...] | Key) -> tuple[torch.Tensor, Target]:
        epoch, index, showing, closing = key if isinstance(key, Key) else Key(key[0], key[1], sum(key[2:]))
        with self.drawing(epoch, index, showing):
            transform = self.closing if closing else self.transform
            image, boxes, labels = self.samples[index]
            image, boxes, labels = transform(image, boxes, labels, self.samples)
            if len(labels) and int(labels.max()) > self.classes:
                raise StepError(f"a step returned the label {int(labels.max())}, but there are {self.classes} classes")
        return image.as_subclass(torch.Tensor), {
            "boxes": boxes.as_subclass(torch.Tensor),
            "labels": labels,
            "image_id": self.records[index].image_id,
            "index": index,
        }

    @contextmanager
    def drawing(self, epoch: int, index: int, showing: int = 0) -> Iterator[None]:
        """Context with the random state of this epoch, image and repetition. Errors of steps name the image.

        Raises:
            StepError: a step failed.
        """
        with torch.random.fork_rng(devices=[]):
            # the CPU's generator alone: torch.manual_seed would also reset the devices' without giving them back
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index, *([showing] if showing else [])))
            try:
                yield
            except StepError as error:
                raise StepError(f"{self.records[index].path}: {error}") from error


def training_dataset(split: Split, config: Config) -> DetectionDataset:
    """Create the augmented training images of a run.

    Raises:
        DoubleheadError: a function that a step names cannot be imported.
    """
    size, augment = config.model.input, config.data.augment
    open_, closed = (
        training_transform(steps, size.short_side, size.long_side, size.antialias, size.mean)
        for steps in (augment, augment.closed)
    )
    return DetectionDataset(split, open_, config.train.seed, closed)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Number of full batches in one pass over the images; at least one."""
    return max(1, images // batch_size)


def epoch_batches(
    sizes: Sequence[tuple[int, int]], batch_size: int, seed: int, epoch: int, factors: np.ndarray | None = None
) -> list[list[int]]:
    """Shuffle the images of one epoch into full batches of indices.

    Each batch has images of one orientation, to reduce padding. The remainders of both fill mixed batches at the end,
    and images left over are omitted in this epoch. Fewer images than a batch are repeated to fill one.

    Args:
        sizes: (width, height) of each image in pixels.
        batch_size: images per step, over all ranks and accumulation.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        factors: average number of repetitions of each image; None: one. See `sampling`.
    """
    order = epoch_order(len(sizes), factors, np.random.default_rng(_mix(seed, epoch)))
    if len(order) < batch_size:
        return [(order * -(-batch_size // len(order)))[:batch_size]]
    batches: list[list[int]] = []
    waiting: dict[bool, list[int]] = {True: [], False: []}
    for index in order:
        width, height = sizes[index]
        group = waiting[width >= height]
        group.append(index)
        if len(group) == batch_size:
            batches.append(group.copy())
            group.clear()
    rest = waiting[True] + waiting[False]
    return batches + ([rest[:batch_size]] if len(rest) >= batch_size else [])


def training_loader(
    dataset: DetectionDataset,
    batch_size: int,
    micro_batch: int,
    rank: int,
    world: int,
    seed: int,
    start_step: int,
    steps: int,
    workers: int,
    timeout: float = LOADER_TIMEOUT,
    pin: bool = False,
    factors: np.ndarray | None = None,
) -> Iterator[tuple[list[torch.Tensor], list[Target]]]:
    """Iterate over micro-batches (images, targets) of one rank, from `start_step` to `steps` - 1.

    Step s always takes batch s of the sequence of epochs, so resuming needs the step alone. A rank takes its contiguous
    part of each batch of `batch_size` images, in `batch_size / world / micro_batch` pieces. `factors` are the average
    repetitions of images (see `sampling`). With `pin`, batches are in pinned memory, from which CUDA devices copy
    asynchronously.

    Raises:
        DoubleheadError: there are no images, the batch cannot be divided among processes, or an image cannot be read.
        Fault: no batch arrived within `timeout` seconds.
    """
    if not len(dataset):
        raise DoubleheadError("the training split holds no images")
    if batch_size % (world * micro_batch):
        raise DoubleheadError(
            f"train.batch_size {batch_size} cannot be divided among {world} processes in parts of {micro_batch}; "
            f"make it a multiple of {world * micro_batch}"
        )
    plan = _BatchSchedule(dataset, batch_size, micro_batch, rank, world, seed, start_step, steps, factors)
    return _load(_Guarded(dataset.__getitem__), plan, micro_batch, workers, timeout, pin)


def evaluation_loader(
    split: Split, batch_size: int, workers: int, rank: int = 0, world: int = 1, timeout: float = LOADER_TIMEOUT
) -> Iterator[tuple[list[torch.Tensor], list[Record]]]:
    """Iterate over batches of images, uint8 (3, H, W) in original size, and their records.

    Images are sorted by shape, from tall to wide, to reduce padding. Each rank takes every `world`-th batch: padding
    affects the last digits of detections, which must not depend on the number of ranks.

    Raises:
        DoubleheadError: an image cannot be read.
        Fault: as in `training_loader`.
    """
    shapes = [record.width / record.height for record in split.records]
    indices = sorted(range(len(shapes)), key=shapes.__getitem__)
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    for images, places in _load(
        _Guarded(_Originals(split.records)), batches[rank::world], batch_size, workers, timeout
    ):
        yield images, [split.records[place] for place in places]


class Waited(Iterator[Item]):
    """Iterator wrapper that measures the seconds spent waiting for items."""

    def __init__(self, items: Iterator[Item]) -> None:
        self.items = items
        self.seconds = 0.0

    def __next__(self) -> Item:
        began = time.monotonic()
        try:
            return next(self.items)
        finally:
            self.seconds += time.monotonic() - began

    def close(self) -> None:
        """Close the iterator and stop its loader processes."""
        close = getattr(self.items, "close", None)
        if close is not None:
            close()


def default_workers(local: int = 1) -> int:
    """Default number of loader processes per rank, 1 to 8: the available cores, divided among the machine's ranks.

    Args:
        local: ranks on this machine. One core is reserved for each.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // local - 1))


class _BatchSchedule:
    """The keys of every micro-batch of a run, epoch by epoch."""

    def __init__(
        self,
        dataset: DetectionDataset,
        batch_size: int,
        micro_batch: int,
        rank: int,
        world: int,
        seed: int,
        start_step: int,
        steps: int,
        factors: np.ndarray | None,
    ) -> None:
        self.sizes = [(record.width, record.height) for record in dataset.records]
        self.batch_size, self.micro_batch, self.seed = batch_size, micro_batch, seed
        self.share = range(rank * batch_size // world, (rank + 1) * batch_size // world, micro_batch)
        self.steps = range(start_step, steps)
        self.closing = steps - steps // LAST
        self.factors = factors

    def __len__(self) -> int:
        return len(self.steps) * len(self.share)

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = steps_per_epoch(images_per_epoch(len(self.sizes), self.factors), self.batch_size)
        current, batches = -1, list[list[Key]]()
        for step in self.steps:
            epoch, place = divmod(step, per_epoch)
            if epoch != current:
                current, batches = epoch, self._keys(epoch)
            for start in self.share:
                part = batches[place][start : start + self.micro_batch]
                yield [key._replace(closing=step >= self.closing) for key in part]

    def _keys(self, epoch: int) -> list[list[Key]]:
        seen: Counter[int] = Counter()
        keys: list[list[Key]] = []
        for batch in epoch_batches(self.sizes, self.batch_size, self.seed, epoch, self.factors):
            keys.append([])
            for index in batch:
                keys[-1].append(Key(epoch, index, seen[index]))
                seen[index] += 1
        return keys


class _Originals:
    """An image as it is, and its index."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __call__(self, index: int) -> tuple[torch.Tensor, int]:
        return to_tensor(read_record(self.records[index])), index


class _Guarded(torch.utils.data.Dataset[Any]):
    """Dataset of whole batches that returns errors as values: torch would wrap their messages in a traceback."""

    def __init__(self, item: Callable[[Any], tuple[torch.Tensor, Any]]) -> None:
        self.item = item

    def __getitem__(self, keys: Sequence[Any]) -> tuple[list[torch.Tensor], list[Any]] | DoubleheadError:
        try:
            images, others = zip(*map(self.item, keys), strict=True)
        except DoubleheadError as error:
            return error
        return list(images), list(others)


def _load(
    items: _Guarded, batches: Any, images: int, workers: int, timeout: float, pin: bool = False
) -> Iterator[tuple[list[torch.Tensor], list[Any]]]:
    loader = DataLoader(
        items,
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_quiet,
        timeout=timeout if workers else 0,
        pin_memory=pin,
        generator=torch.Generator(),  # or it would draw from the global one, and a resumed run would differ
    )
    iterator: Any = None
    stop = _nothing
    try:
        if workers:  # pipes of each; and of its two batches ahead, three tensors an image, each passed as a file
            allow_open_files(16 + workers * (8 + 2 * 3 * images))
        with _signals_later():
            if workers:
                _require_guard()
            iterator = iter(loader)
        if workers:
            stop = functools.partial(_stop, iterator)
            # a kept traceback may hold the iterator, and multiprocessing would wait for its processes forever
            atexit.register(stop)
        for batch in iterator:
            if isinstance(batch, DoubleheadError):
                raise batch
            yield batch
    except RuntimeError as error:
        for worker in getattr(iterator, "_workers", ()):  # one that hangs would keep this process from ending
            with suppress(RuntimeError):  # torch says of each that it was killed
                worker.kill()
                worker.join()
        if "timed out" in str(error):
            raise Fault(
                f"loading one batch took more than {timeout:g} seconds: see whether the disk or the network that holds "
                "the images hangs, or set data.timeout higher"
            ) from error
        raise
    finally:
        atexit.unregister(stop)
        stop()


def _stop(iterator: Any) -> None:
    """Stop the loader processes of an iterator, by force those that hang, since they ignore SIGTERM."""
    iterator._shutdown_workers()
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()


@functools.cache
def _require_guard() -> None:
    """Check once, with an empty process, that loader processes can start.

    With a fork server, torch notices only after `timeout` that its processes have ended.

    Raises:
        DoubleheadError: the processes run the user's script.
    """
    if multiprocessing.get_start_method() == "fork":
        return
    process = multiprocessing.Process(target=_nothing)
    try:
        process.start()
        process.join()
    except (EOFError, ConnectionError) as error:  # the fork server itself ran the script, and is gone
        raise DoubleheadError(UNGUARDED) from error
    if process.exitcode == SECOND_IMPORT:
        raise DoubleheadError(UNGUARDED)


def _nothing() -> None:
    pass


@contextmanager
def _signals_later() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM while loader processes start; they inherit the mask until they ignore both signals.

    With the start methods spawn and forkserver, processes import modules for seconds, and a Ctrl-C that asks the run to
    save and stop would kill them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_is(batch: Any) -> Any:
    return batch


def _quiet(_: int) -> None:
    """Ignore Ctrl-C and SIGTERM in workers: the main process saves its state and then stops them."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _mix(*parts: int) -> int:
    """Combine numbers into a 64-bit seed."""
    return int(np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(1, np.uint64)[0])
