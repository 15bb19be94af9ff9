"""Pipeline from encoded images to detections, decoding ahead of the model."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from PIL import Image
from torch import Tensor

from doublehead.common.errors import DoubleheadError
from doublehead.data.images import image_size, read_image, to_tensor, unreadable
from doublehead.deploy.bulk.sources import Item
from doublehead.inference.detections import Detections
from doublehead.inference.predictor import Predictor

Element = TypeVar("Element")

READERS = max(2, min(16, os.cpu_count() or 1))  # threads; decoders let go of Python's lock
WINDOW = 16  # batches whose images are sorted by shape
AHEAD = 2  # batches that are ready before the model asks


@dataclass(frozen=True)
class Ready:
    """An image ready for the model, or the reason why it is not."""

    index: int  # its place among all
    name: str
    tensor: Tensor | None = None  # uint8 (3, H, W)
    picture: Image.Image | None = None
    fault: str = ""


@dataclass(frozen=True)
class ImageResult:
    """Detections in an image, or the reason why it could not be read."""

    index: int  # its place among all
    name: str
    width: int = 0
    height: int = 0
    detections: Detections | None = None
    fault: str = ""


def read_ahead(items: Iterable[Item], batch_size: int, pictures: bool = False) -> Iterator[list[Ready]]:
    """Read and decode batches of similar shapes, which need little padding, in threads ahead of the model.

    Memory does not grow with the number of images. Batches depend on the items and `batch_size` alone.

    Args:
        items: the images.
        batch_size: images per batch.
        pictures: whether to keep the decoded images, for drawing.
    """
    with ThreadPoolExecutor(READERS) as readers:
        yield from ahead(_batches(items, batch_size, pictures, readers), AHEAD)


def detect_batches(predictor: Predictor, batches: Iterable[Sequence[Ready]], score: float) -> Iterator[ImageResult]:
    """Yield the detections with at least this score in each image of each batch, in order."""
    for batch in batches:
        tensors = [ready.tensor for ready in batch if ready.tensor is not None]
        results = iter(predictor.detect(tensors) if tensors else [])
        for ready in batch:
            if ready.tensor is None:
                yield ImageResult(ready.index, ready.name, fault=ready.fault)
            else:
                height, width = ready.tensor.shape[1:]
                detections = replace(next(results).above(score), image=ready.picture)
                yield ImageResult(ready.index, ready.name, width, height, detections)


def in_order(found: Iterable[ImageResult]) -> Iterator[ImageResult]:
    """Reorder results by index, buffering at most one window."""
    waiting: dict[int, ImageResult] = {}
    following = 0
    for one in found:
        waiting[one.index] = one
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def ahead(elements: Iterator[Element], many: int) -> Iterator[Element]:
    """Yield the same elements, computing `many` of them ahead in a thread."""
    with ThreadPoolExecutor(1) as feeder:
        waiting = deque(feeder.submit(next, elements, None) for _ in range(many))
        try:
            while (element := waiting.popleft().result()) is not None:
                waiting.append(feeder.submit(next, elements, None))
                yield element
        finally:
            feeder.shutdown(cancel_futures=True)


def _batches(
    items: Iterable[Item], batch_size: int, pictures: bool, readers: ThreadPoolExecutor
) -> Iterator[list[Ready]]:
    numbered, decode = enumerate(items), partial(_decode, pictures=pictures)
    while window := list(islice(numbered, WINDOW * batch_size)):
        indices, chosen = zip(*window, strict=True)
        read = readers.map(_read, chosen)
        tasks = sorted(zip(indices, chosen, read, strict=True), key=lambda task: _shape(*task[1:]))
        for start in range(0, len(tasks), batch_size):
            yield list(readers.map(decode, *zip(*tasks[start : start + batch_size], strict=True)))


def _read(item: Item) -> bytes | DoubleheadError:
    try:
        return item.read()
    except OSError as error:
        return unreadable(Path(item.name), error)


def _shape(item: Item, data: bytes | DoubleheadError) -> float:
    """Aspect ratio, as a sort key; unreadable images come last."""
    try:
        width, height = image_size(Path(item.name), data) if isinstance(data, bytes) else (1, 0)
        return width / height
    except (DoubleheadError, ZeroDivisionError):
        return math.inf


def _decode(index: int, item: Item, data: bytes | DoubleheadError, pictures: bool) -> Ready:
    if isinstance(data, DoubleheadError):
        return Ready(index, item.name, fault=str(data))
    try:
        picture = read_image(Path(item.name), data)
    except DoubleheadError as error:
        return Ready(index, item.name, fault=str(error))
    return Ready(index, item.name, to_tensor(picture), picture if pictures else None)
