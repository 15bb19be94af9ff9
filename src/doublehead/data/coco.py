"""COCO JSON to records."""

from __future__ import annotations

import json
import os.path
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from doublehead.data.images import image_size
from doublehead.data.records import FLOAT32_LIMIT, Categories, Findings, Record, Split, note_box
from doublehead.errors import DoubleheadError


def read_coco(name: str, annotations: Path, images: Path) -> Split:
    """Read one split from a COCO `instances` file whose `file_name`s lie under the folder `images`.

    Category ids may have gaps: labels 1..C follow them in rising order, and every category is kept, also one
    without boxes. Crowds are kept and marked. Boxes without area inside the image are counted and left out; boxes
    past the image's edge are counted and kept as annotated. Sizes come from the JSON, or else from the image file.

    Raises:
        DoubleheadError: the file is missing, is no COCO JSON, or contradicts itself; it names the entry at fault.
    """
    if not images.is_dir():
        raise DoubleheadError(f"{images}: there is no such folder of images for {annotations}")
    content = _load(annotations)
    findings = Findings()
    categories = _categories(annotations, content, findings)
    label_of = {category: label for label, category in enumerate(categories.ids, start=1)}

    of_image: dict[int, list[dict[str, Any]]] = {}
    for image in content["images"]:
        if not _is_int(image.get("id")):
            raise DoubleheadError(f"{annotations}: an image has the id {image.get('id')!r}; ids are whole numbers")
        if image["id"] in of_image:
            raise DoubleheadError(f"{annotations}: two images have the id {image['id']}; give each its own")
        of_image[image["id"]] = []
    for annotation in content["annotations"]:
        where = f"{annotations}: annotation {annotation.get('id', 'without id')}"
        if not _is_int(annotation.get("image_id")) or annotation["image_id"] not in of_image:
            raise DoubleheadError(f"{where} names image {annotation.get('image_id')!r}, which is not among the images")
        if not _is_int(annotation.get("category_id")) or annotation["category_id"] not in label_of:
            raise DoubleheadError(f"{where} names category {annotation.get('category_id')!r}, which is not defined")
        of_image[annotation["image_id"]].append(annotation)

    root = Path(os.path.normpath(images))
    records = [
        _record(annotations, root, image, of_image[image["id"]], label_of, findings) for image in content["images"]
    ]
    return Split(name, records, categories, findings)


def read_categories(annotations: Path) -> Categories:
    """The categories of a COCO `instances` file, by rising id.

    Raises:
        DoubleheadError: as `read_coco`.
    """
    return _categories(annotations, _load(annotations), Findings())


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
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


def _categories(path: Path, content: dict[str, list[dict[str, Any]]], findings: Findings) -> Categories:
    entries = content["categories"]
    for entry in entries:
        if not _is_int(entry.get("id")) or not isinstance(entry.get("name"), str):
            raise DoubleheadError(f"{path}: category {entry.get('id')!r} needs a whole number as id and a name")
    entries = sorted(entries, key=lambda entry: entry["id"])
    if not entries:
        raise DoubleheadError(f"{path}: defines no categories; add them under `categories`")
    for first, second in pairwise(entries):
        if first["id"] == second["id"]:
            raise DoubleheadError(f"{path}: two categories have the id {first['id']}; give each its own")
    if _is_placeholder(entries[0], entries[1:], content["annotations"]):
        findings.add("placeholder category left out", f"category 0 `{entries[0]['name']}` in {path.name}")
        entries = entries[1:]
    return Categories(tuple(entry["name"] for entry in entries), tuple(entry["id"] for entry in entries))


def _is_placeholder(first: dict[str, Any], others: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> bool:
    """Whether category 0 is the project's name that Roboflow puts before the real classes, as their parent."""
    return (
        first["id"] == 0
        and bool(others)
        and all(other.get("supercategory") == first["name"] for other in others)
        and all(annotation.get("category_id") != 0 for annotation in annotations)
    )


def _record(
    path: Path,
    root: Path,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    label_of: dict[int, int],
    findings: Findings,
) -> Record:
    file_name = image.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise DoubleheadError(f"{path}: image {image['id']} has no `file_name`")
    file = Path(os.path.normpath(root / file_name))
    if not file.is_relative_to(root):
        raise DoubleheadError(f"{path}: image {image['id']} lies outside {root} (`{file_name}`); move it there")
    width, height = image.get("width", 0), image.get("height", 0)
    if not (_is_int(width) and _is_int(height) and width > 0 and height > 0):
        width, height = image_size(file)

    boxes, labels, crowd, areas = [], [], [], []
    for annotation in annotations:
        where = f"annotation {annotation.get('id', 'without id')}"
        x, y, w, h = _numbers(annotation.get("bbox"), 4, f"{path}: {where} needs a `bbox` of four finite numbers")
        box = (x, y, x + w, y + h)
        if not note_box(box, width, height, f"{file_name}, {where}", findings):
            continue
        area = annotation.get("area")
        message = f"{path}: {where} needs a finite number as `area`, or none"
        areas.append(w * h if area is None else _numbers([area], 1, message)[0])
        boxes.append(box)
        labels.append(label_of[annotation["category_id"]])
        crowd.append(bool(annotation.get("iscrowd")))
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


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(value: Any, count: int, message: str) -> list[float]:
    """`value` as finite floats, or an error with `message`."""
    if not isinstance(value, list) or len(value) != count or not all(map(_is_finite, value)):
        raise DoubleheadError(f"{message}, not {value!r}")
    return [float(v) for v in value]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FLOAT32_LIMIT
