"""Pictures with drawn detections, and predictions.json for all images. For small numbers of images."""

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
    """Outcome of writing pictures."""

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
    """Detect objects in images; write a picture per image, and predictions.json for all.

    predictions.json has COCO's layout (`images`, `categories`, `annotations` with `score`), which annotation tools can
    open. Pictures keep the names of their files; equal names from different folders are numbered.

    Args:
        predictor: the model.
        parts: the images.
        output: output folder.
        score: minimum score of detections drawn and written.
        batch_size: images per forward pass.
        progress: called with the number of finished images.

    Raises:
        DoubleheadError: `output` contains some of the images, which could be overwritten.
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
    """Draw pictures in threads, in parallel to the model. Yields results without their images."""
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
    """Yield the items, and add to `paths` the path of each picture: the file name as JPEG, numbered if taken."""
    taken: set[str] = set()
    for item in items:
        paths.append(output / f"{free_name(Path(item.name).stem, taken)}.jpg")
        yield item
