"""COCO JSON to records."""

from __future__ import annotations

import json
import os.path
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from doublehead.common.errors import DoubleheadError, brief, printable
from doublehead.data.images import image_size
from doublehead.data.records import COORDINATE_LIMIT, ID_LIMIT, Categories, Findings, Record, Split, note_box

Entry = dict[str, Any]


def read_coco(name: str, annotations: Path, images: Path) -> Split:
    """Read one split from a COCO `instances` file whose `file_name`s lie under the folder `images`.

    Category ids may have gaps: labels 1..C follow them in rising order, and every category is kept, also one
    without boxes. Crowds are kept and marked. Boxes without area inside the image are counted and left out; boxes
    past the image's edge are counted and kept as annotated. Sizes come from the JSON, or else from the image file.
    Images and annotations at fault are left out, each a fault in the split's findings.

    Raises:
        DoubleheadError: the file is missing or is no COCO JSON, or its categories contradict each other.
    """
    if not os.path.isdir(images):
        raise DoubleheadError(f"{images}: there is no such folder of images for {annotations}")
    content = _load(annotations)
    findings = Findings()
    categories = _categories(annotations, content, findings)
    reader = _Reader(annotations, Path(os.path.normpath(images)), categories, findings)
    entries = reader.images(content["images"])
    reader.annotations(content["annotations"], entries)
    records: list[Record] = []
    for image, of_image in entries.values():
        with findings.collect("images that cannot be used"):
            records.append(reader.record(image, of_image))
    return Split(name, records, categories, findings)


def read_categories(annotations: Path) -> Categories:
    """The categories of a COCO `instances` file, by rising id.

    Raises:
        DoubleheadError: as `read_coco`.
    """
    return _categories(annotations, _load(annotations), Findings())


def _load(path: Path) -> dict[str, list[Entry]]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DoubleheadError(f"{path}: there is no such annotation file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DoubleheadError(f"{path}: cannot be read as JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DoubleheadError(f"{path}: has no list of `{key}`, so it is not a COCO instances file")
    return content


def _categories(path: Path, content: dict[str, list[Entry]], findings: Findings) -> Categories:
    entries = content["categories"]
    for entry in entries:
        name = entry.get("name")
        if not _is_id(entry.get("id")) or not isinstance(name, str) or not name.strip() or name != printable(name):
            raise DoubleheadError(f"{path}: category {brief(entry.get('id'))} needs a whole number as id and a name")
    entries = sorted(entries, key=lambda entry: entry["id"])
    if not entries:
        raise DoubleheadError(f"{path}: defines no categories; add them under `categories`")
    for first, second in pairwise(entries):
        if first["id"] == second["id"]:
            raise DoubleheadError(f"{path}: two categories have the id {first['id']}; give each its own")
    if _is_placeholder(entries[0], entries[1:], content["annotations"]):
        findings.warn("placeholder category left out", f"category 0 `{entries[0]['name']}` in {path.name}")
        entries = entries[1:]
    elif entries[0]["id"] == 0:
        findings.warn("category id 0, which some programs take for the background", f"`{entries[0]['name']}`")
    return Categories(tuple(entry["name"] for entry in entries), tuple(entry["id"] for entry in entries))


def _is_placeholder(first: Entry, others: list[Entry], annotations: list[Entry]) -> bool:
    """Whether category 0 is the project's name that Roboflow puts before the real classes, as their parent."""
    return (
        first["id"] == 0
        and bool(others)
        and all(other.get("supercategory") == first["name"] for other in others)
        and all(annotation.get("category_id") != 0 for annotation in annotations)
    )


class _Reader:
    """Entries of one file to records; what is wrong with one goes into `findings`."""

    def __init__(self, path: Path, root: Path, categories: Categories, findings: Findings) -> None:
        self.path, self.root, self.findings = path, root, findings
        self.label_of = {category: label for label, category in enumerate(categories.ids, start=1)}

    def images(self, entries: list[Entry]) -> dict[int, tuple[Entry, list[Entry]]]:
        """Images by id, each with an empty list for its annotations."""
        found: dict[int, tuple[Entry, list[Entry]]] = {}
        files: dict[str, str] = {}
        for image in entries:
            number, file = image.get("id"), image.get("file_name")
            if not _is_id(number):
                sentence = f"{self.path}: an image has the id {brief(number)}; ids are whole numbers"
                self.findings.fault("images without an id", sentence)
            elif number in found:
                sentence = f"{self.path}: two images have the id {number}; give each its own"
                self.findings.fault("images with the id of another", sentence)
            else:
                found[number] = (image, [])
            if isinstance(file, str) and file in files:
                self.findings.warn("files listed as two images", f"{file}, images {files[file]} and {brief(number)}")
            elif isinstance(file, str):
                files[file] = brief(number)
        return found

    def annotations(self, entries: list[Entry], images: dict[int, tuple[Entry, list[Entry]]]) -> None:
        """Hand each annotation to its image."""
        seen: set[Any] = set()
        for annotation in entries:
            number, image_id, category = (annotation.get(key) for key in ("id", "image_id", "category_id"))
            where = f"{self.path}: {_named(annotation)}"
            if not _is_id(image_id) or image_id not in images:
                sentence = f"{where} names image {brief(image_id)}, which is not among the images"
                self.findings.fault("annotations of unknown images", sentence)
            elif not _is_id(category) or category not in self.label_of:
                sentence = f"{where} names category {brief(category)}, which is not defined"
                self.findings.fault("annotations of unknown categories", sentence)
            else:
                images[image_id][1].append(annotation)
            if _is_id(number):
                if number in seen:
                    self.findings.warn("annotation ids used twice", f"{_named(annotation)} in {self.path.name}")
                if number == 0:
                    self.findings.warn("annotation id 0, which pycocotools takes for none", self.path.name)
                seen.add(number)

    def record(self, image: Entry, annotations: list[Entry]) -> Record:
        """One image with its annotations."""
        file_name = image.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise DoubleheadError(f"{self.path}: image {image['id']} has no `file_name`")
        file = Path(os.path.normpath(self.root / file_name))
        if not file.is_relative_to(self.root) or file == self.root:
            raise DoubleheadError(
                f"{self.path}: image {image['id']} lies outside {self.root} (`{file_name}`); move it there",
                "images outside the dataset's folder",
            )
        width, height = image.get("width"), image.get("height")
        if not (_is_id(width) and _is_id(height) and width > 0 and height > 0):
            width, height = image_size(file)

        boxes, labels, crowd, areas = [], [], [], []
        for annotation in annotations:
            with self.findings.collect("boxes that cannot be read", file):
                where = f"{self.path}: {_named(annotation)} needs a"
                x, y, w, h = _numbers(annotation.get("bbox"), 4, f"{where} `bbox` of four finite numbers")
                area = annotation.get("area")
                area = w * h if area is None else _numbers([area], 1, f"{where} finite number as `area`, or none")[0]
                box = (x, y, x + w, y + h)
                if note_box(box, width, height, f"{file_name}, {_named(annotation)}", file, self.findings):
                    boxes.append(box)
                    labels.append(self.label_of[annotation["category_id"]])
                    crowd.append(bool(annotation.get("iscrowd")))
                    areas.append(area)
        return Record(
            image_id=image["id"],
            path=file,
            width=width,
            height=height,
            boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
            labels=np.array(labels, dtype=np.int64),
            crowd=np.array(crowd, dtype=bool),
            areas=np.array(areas, dtype=np.float32),
        )


def _named(annotation: Entry) -> str:
    return f"annotation {brief(annotation['id'])}" if "id" in annotation else "annotation without id"


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= ID_LIMIT


def _numbers(value: Any, count: int, message: str) -> list[float]:
    """`value` as finite floats, or an error with `message`."""
    if not isinstance(value, list) or len(value) != count or not all(map(_is_finite, value)):
        raise DoubleheadError(f"{message}, not {brief(value)}")
    return [float(v) for v in value]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < COORDINATE_LIMIT
