"""Streaming writer of COCO's layout with scores, in constant memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from doublehead.common.categories import Categories
from doublehead.common.files import whole
from doublehead.inference.detections import Detections


class CocoWriter:
    """Writes `categories`, `annotations` and `images`; `coco_writer` makes one."""

    def __init__(self, file: IO[str], images: IO[str], categories: Categories) -> None:
        self._file, self._images = file, images
        self.images = self.annotations = 0  # how many are written
        named = [{"id": number, "name": name} for name, number in categories.pairs]
        self._file.write(f'{{"categories": {json.dumps(named)}, "annotations": [')

    def add(self, name: str, width: int, height: int, detections: Detections, **more: Any) -> None:
        """Write an image and its detections.

        Args:
            name: `file_name` of the image.
            width: width in pixels.
            height: height in pixels.
            detections: detections in the image.
            more: further fields of the image.
        """
        self.images += 1
        entry = {"id": self.images, "file_name": name, "width": width, "height": height, **more}
        self._images.write((", " if self.images > 1 else "") + json.dumps(entry))
        for item in detections.to_coco(self.images):
            self.annotations += 1
            area = item["bbox"][2] * item["bbox"][3]
            annotation = {"id": self.annotations, "iscrowd": 0, "area": area, **item}
            self._file.write((", " if self.annotations > 1 else "") + json.dumps(annotation))

    def end(self) -> None:
        """Write the list of images after the annotations."""
        self._file.write('], "images": [')
        self._images.seek(0)
        shutil.copyfileobj(self._images, self._file)
        self._file.write("]}")


@contextmanager
def coco_writer(path: Path, categories: Categories) -> Iterator[CocoWriter]:
    """Context with a writer whose file appears only when it is complete.

    Raises:
        Fault: the file cannot be written.
    """
    with whole(path) as temporary:
        spool = temporary.with_name("images")
        with temporary.open("w", encoding="utf-8") as file, spool.open("w+", encoding="utf-8") as images:
            writer = CocoWriter(file, images, categories)
            yield writer
            writer.end()
