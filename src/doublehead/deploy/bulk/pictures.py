"""A picture of each image, and predictions.json for all: for as many images as a person looks at."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from doublehead.common.errors import DoubleheadError
from doublehead.common.files import free_name
from doublehead.data.loader import Waited
from doublehead.deploy.bulk.coco import coco_writer
from doublehead.deploy.bulk.detecting import ImageResult, detect_batches, in_order, read_ahead
from doublehead.deploy.bulk.sources import Files, Item, Part
from doublehead.inference.predictor import Predictor

DRAWN_LATER = 8  # pictures that may wait to be drawn


@dataclass(frozen=True)
class PicturesWritten:
    """How it went."""

    done: int  # images
    faults: list[str]  # one sentence for each image that could not be read; the others are done all the same
    waited: float  # share of the time in which the model stood idle, waiting for images to be read


def predict_pictures(
    predictor: Predictor,
    parts: Sequence[Part],
    output: Path,
    score: float,
    batch_size: int = 4,
    progress: Callable[[int], object] | None = None,
) -> PicturesWritten:
    """Detect objects in images; write a picture of each, and predictions.json for all.

    predictions.json has COCO's layout (`images`, `categories`, `annotations` with `score`), so that annotation tools
    open it. A picture keeps its file's name; files of one name from several folders are numbered.

    Args:
        predictor: the model.
        parts: the images.
        output: folder to write into.
        score: detections below it are neither drawn nor written.
        batch_size: images that go through the model at once.
        progress: told how many images are done.

    Raises:
        DoubleheadError: `output` holds some of the images, which a picture could replace.
    """
    files = [path for part in parts if isinstance(part, Files) for path in part.paths]
    if output.resolve() in {Path(file).parent.resolve() for file in files}:
        raise DoubleheadError(f"{output}: holds images to predict on; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    items = _named(chain.from_iterable(part.items() for part in parts), output, paths)
    batches = Waited(read_ahead(items, batch_size, pictures=True))
    began, faults = time.monotonic(), list[str]()
    with coco_writer(output / "predictions.json", predictor.categories) as writer, ThreadPoolExecutor(2) as pool:
        for found in in_order(_drawn(detect_batches(predictor, batches, score), paths, pool)):
            if found.detections is None:
                faults.append(found.fault)
            else:
                writer.add(found.name, found.width, found.height, found.detections)
            if progress:
                progress(1)
    return PicturesWritten(writer.images, faults, batches.seconds / (time.monotonic() - began))


def _drawn(several: Iterable[ImageResult], paths: Sequence[Path], pool: ThreadPoolExecutor) -> Iterator[ImageResult]:
    """Have a picture of each drawn while the model is busy; what is handed on carries none."""
    drawing: deque[Future[Path]] = deque()
    for found in several:
        if found.detections is not None:
            drawing.append(pool.submit(found.detections.save, paths[found.index], score=0))
            found = replace(found, detections=replace(found.detections, image=None))
        while len(drawing) > DRAWN_LATER:
            drawing.popleft().result()
        yield found
    for picture in drawing:
        picture.result()


def _named(items: Iterable[Item], output: Path, paths: list[Path]) -> Iterator[Item]:
    """The same items; each one's picture gets its path: its file's name, as JPEG, with a number where it is taken."""
    taken: set[str] = set()
    for item in items:
        paths.append(output / f"{free_name(Path(item.name).stem, taken)}.jpg")
        yield item
