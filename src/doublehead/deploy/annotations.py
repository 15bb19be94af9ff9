"""Detections as annotations for correction, in the formats of annotation tools.

To add a format, write a class here and add a row to `choices.ANNOTATORS`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import yaml

from doublehead.common.errors import DoubleheadError
from doublehead.common.files import whole
from doublehead.common.tables import imported
from doublehead.deploy.bulk.detecting import detect_batches, in_order, read_ahead
from doublehead.deploy.bulk.sources import Part
from doublehead.deploy.choices import ANNOTATORS
from doublehead.inference.detections import Detections, texts
from doublehead.inference.predictor import Predictor

DECIMALS = 2


class Annotator(ABC):
    """Base class: writes the detections of images to a folder.

    Args:
        folder: output folder.
        names: class names in the model's order.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    @abstractmethod
    def add(self, file: str, size: tuple[int, int], found: Detections) -> None:
        """Add the detections of an image of (width, height), clipped to it; `file` is its name without folders."""

    @abstractmethod
    def close(self) -> None:
        """Write the content that depends on all images."""

    def write(self, name: str, text: str) -> None:
        """Write a file in the folder atomically."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


class Voc(Annotator):
    """Pascal VOC: an XML per image in `Annotations`, with the edges of each box, as LabelImg and CVAT write them."""

    def add(self, file: str, size: tuple[int, int], found: Detections) -> None:
        """Write the image's XML."""
        self.write(f"Annotations/{Path(file).stem}.xml", found.to_voc(file, size))

    def close(self) -> None:
        """Nothing to do: each image has its own file."""


class Yolo(Annotator):
    """YOLO: a text file per image in `labels`, and `data.yaml` and `classes.txt` with the names."""

    def add(self, file: str, size: tuple[int, int], found: Detections) -> None:
        """Write the image's lines."""
        self.write(f"labels/{Path(file).stem}.txt", found.to_yolo(size))

    def close(self) -> None:
        """Write the names of the classes."""
        values = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(self.names))}
        self.write("data.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        self.write("classes.txt", "".join(f"{name}\n" for name in self.names))


class Cvat(Annotator):
    """CVAT for images 1.1: `annotations.xml`."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        super().__init__(folder, names)
        self.root = Element("annotations")
        texts(self.root, version="1.1")
        labels = SubElement(SubElement(SubElement(self.root, "meta"), "task"), "labels")
        for name in names:
            texts(SubElement(labels, "label"), name=name)
        self.images = 0

    def add(self, file: str, size: tuple[int, int], found: Detections) -> None:
        """Add an <image> element."""
        node = SubElement(self.root, "image", id=str(self.images), name=file, width=str(size[0]), height=str(size[1]))
        self.images += 1
        for name, box in zip(found.class_names, found.boxes.tolist(), strict=True):
            corners = zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)
            values = {key: f"{value:.{DECIMALS}f}" for key, value in corners}
            SubElement(node, "box", {"label": name, "source": "auto", "occluded": "0", **values, "z_order": "0"})

    def close(self) -> None:
        """Write the file."""
        indent(self.root)
        self.write("annotations.xml", tostring(self.root, encoding="unicode"))


class LabelStudio(Annotator):
    """Label Studio: tasks with predictions in `label-studio.json`, and the labelling interface in `label-config.xml`.

    Images are referred to as in Label Studio's local storage, which must be set to the folder of the images.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        super().__init__(folder, names)
        self.tasks: list[dict[str, Any]] = []

    def add(self, file: str, size: tuple[int, int], found: Detections) -> None:
        """Add a task; boxes are in per cent of the image."""
        width, height = size
        result = []
        for number, (name, score, box) in enumerate(
            zip(found.class_names, found.scores.tolist(), found.boxes.tolist(), strict=True)
        ):
            x1, y1, x2, y2 = (100 * value / side for value, side in zip(box, (width, height) * 2, strict=True))
            value = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0, "rectanglelabels": [name]}
            where = {"from_name": "label", "to_name": "image", "original_width": width, "original_height": height}
            result.append({"id": str(number), "type": "rectanglelabels", **where, "value": value, "score": score})
        prediction: dict[str, Any] = {"model_version": "doublehead", "result": result}
        if result:
            prediction["score"] = float(found.scores.mean())
        self.tasks.append({"data": {"image": f"/data/local-files/?d={quote(file)}"}, "predictions": [prediction]})

    def close(self) -> None:
        """Write both files."""
        view = Element("View")
        SubElement(view, "Image", name="image", value="$image")
        labels = SubElement(view, "RectangleLabels", name="label", toName="image")
        for name in self.names:
            SubElement(labels, "Label", value=name)
        indent(view)
        self.write("label-config.xml", tostring(view, encoding="unicode"))
        self.write("label-studio.json", json.dumps(self.tasks, indent=1))


def annotate(
    predictor: Predictor,
    parts: Sequence[Part],
    output: Path,
    form: str,
    score: float,
    batch_size: int,
    progress: Callable[[int], object],
) -> tuple[int, list[str]]:
    """Detect objects in images and write them as annotations.

    Args:
        predictor: the model.
        parts: the images.
        output: output folder.
        form: row of `choices.ANNOTATORS`.
        score: minimum score.
        batch_size: images per forward pass.
        progress: called with the number of finished images.

    Returns:
        Number of annotated images, and a message for each image that could not be read.

    Raises:
        DoubleheadError: two images have the same name, or the folder cannot be written.
    """
    writer, faults, done = imported(ANNOTATORS[form])(output, predictor.categories.names), list[str](), 0
    _require_names_of_their_own(chain.from_iterable(part.items() for part in parts))
    items = chain.from_iterable(part.items() for part in parts)
    for found in in_order(detect_batches(predictor, read_ahead(items, batch_size), score)):
        if found.detections is None:
            faults.append(found.fault)
        else:
            size = (found.width, found.height)
            writer.add(Path(found.name).name, size, found.detections.inside(size))
            done += 1
        progress(1)
    writer.close()
    return done, faults


def _require_names_of_their_own(items: Iterable[Any]) -> None:
    seen: dict[str, str] = {}
    for item in items:
        stem = Path(item.name).stem
        if stem in seen:
            raise DoubleheadError(
                f"{item.name} and {seen[stem]} would share one annotation: predict on one folder at a time"
            )
        seen[stem] = item.name
