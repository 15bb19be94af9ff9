"""COCO JSON to records."""

from __future__ import annotations

import json
import os
import posixpath
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, Pictures, canonical, split_in_name, split_of_folder
from doublehead.data.images import image_size
from doublehead.data.objects import MASKS, NAMES_CLEANED, POLYGONS, NotMine, Splits, around
from doublehead.data.records import COORDINATE_LIMIT, ID_LIMIT, Box, Categories, Findings, Record, Split, note_box
from doublehead.data.rle import rle_box
from doublehead.data.text import class_name, is_set

Entry = dict[str, Any]

_SNIFFED = 1 << 16  # bytes at each end of a JSON file in which its keys are looked for


def find_coco(folder: Folder) -> Splits | NotMine | None:
    """Find splits in COCO files of any name; splits are named after the files or else their folders."""
    files = [file for file in folder.suffixed(".json") if _is_coco(folder, file)]
    homes = {posixpath.dirname(file) for file in files if _is_instances(file)}
    files = [file for file in files if _is_instances(file) or posixpath.dirname(file) not in homes]  # no keypoints
    splits: Splits = {}
    for file in files:
        split = _split(file, alone=len(files) == 1)
        split = posixpath.splitext(posixpath.basename(file))[0] if split in splits else split
        splits[split] = partial(_read_in, folder=folder, file=file, split=split)
    return splits or None


def read_coco(name: str, annotations: Path, images: Path) -> Split:
    """Read one split from a COCO `instances` file whose `file_name`s lie under the folder `images`.

    Category ids may have gaps: labels 1..C follow them in rising order, and categories without boxes are kept. Crowds,
    and objects with `ignore` set, are marked as crowds. Without `bbox`, the bounding box of `segmentation` is used, and
    counted. Boxes without area inside the image are counted and ignored; boxes that extend beyond the image are counted
    and kept as annotated. Sizes come from the JSON, or else from the image file. Invalid images and annotations are
    ignored, each with a fault in the findings of the split.

    Raises:
        DoubleheadError: the file is missing or is not COCO JSON, or its categories are contradictory.
    """
    if not os.path.isdir(images):
        raise DoubleheadError(f"{images}: there is no such folder of images for {annotations}")
    content = _load(annotations)
    folder = Folder(Path(os.path.normpath(images)))
    return _read(name, annotations, content, Pictures(folder, _names(content)))


def _is_instances(file: str) -> bool:
    name = posixpath.basename(file).lower()
    return name.startswith("instances") or name.endswith(".coco.json")


def _is_coco(folder: Folder, file: str) -> bool:
    """Whether a JSON file is likely in COCO format, by its name or by the keys near its start and end."""
    if _is_instances(file):
        return True
    try:
        with folder.path(file).open("rb") as content:
            text = content.read(_SNIFFED)
            content.seek(max(0, os.fstat(content.fileno()).st_size - _SNIFFED))
            text += content.read(_SNIFFED)
    except OSError:
        return False
    images = re.search(rb'"images"\s*:\s*\[|"image_id"\s*:', text)
    return bool(images and re.search(rb'"(annotations|categories)"\s*:\s*\[', text))


def _split(file: str, alone: bool) -> str:
    """Name of a file's split: `train2017` for instances_train2017.json, `valid` for valid/_annotations.coco.json."""
    stem = posixpath.splitext(posixpath.basename(file))[0].removeprefix("instances_")
    if canonical(stem) in ("train", "val", "test", "trainval", "all"):
        return stem
    return split_in_name(stem) or split_of_folder(file) or ("all" if alone else stem)


def _read_in(name: str, folder: Folder, file: str, split: str) -> Split:
    beside = posixpath.dirname(file)
    apart = posixpath.basename(beside).lower().startswith(("annot", "label", "json"))  # from the pictures
    home = posixpath.dirname(beside) if apart else beside
    near = [split, f"images/{split}", name, f"images/{name}", "images", "data", *([] if apart else [""])]
    near = [posixpath.join(home, place).rstrip("/") for place in dict.fromkeys(near)]
    content = _load(folder.path(file))
    names = _names(content)
    pictures = Pictures(folder, names, beside, name, near)
    if not folder.folders.intersection(near) and not any(map(pictures.seek, names)):
        raise DoubleheadError(
            f"{folder.path(file)}: no folder of images for it in {folder.root}; looked for {', '.join(near)}"
        )
    return _read(name, folder.path(file), content, pictures)


def _names(content: dict[str, list[Entry]]) -> list[str]:
    return [image["file_name"] for image in content["images"] if isinstance(image.get("file_name"), str)]


def _read(name: str, annotations: Path, content: dict[str, list[Entry]], pictures: Pictures) -> Split:
    findings = Findings()
    categories = _categories(annotations, content, findings)
    reader = _Reader(annotations, pictures, categories, findings)
    entries = reader.images(content["images"])
    reader.annotations(content["annotations"], entries)
    records: list[Record] = []
    for image, of_image in entries.values():
        with findings.collect("images that cannot be used"):
            records.append(reader.record(image, of_image))
    return Split(name, records, categories, findings)


def read_categories(annotations: Path) -> Categories:
    """Read the categories of a COCO `instances` file, by rising id.

    Raises:
        DoubleheadError: as in `read_coco`.
    """
    return _categories(annotations, _load(annotations), Findings())


def _load(path: Path) -> dict[str, list[Entry]]:
    try:
        content = json.loads(path.read_bytes())  # which knows byte order marks
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
        if not _is_id(entry.get("id")) or not (isinstance(name, str) or _is_id(name)) or not class_name(str(name)):
            raise DoubleheadError(f"{path}: category {brief(entry.get('id'))} needs a whole number as id and a name")
    entries = sorted(entries, key=lambda entry: entry["id"])
    if not entries:
        raise DoubleheadError(f"{path}: defines no categories; add them under `categories`")
    for first, second in pairwise(entries):
        if first["id"] == second["id"]:
            raise DoubleheadError(f"{path}: two categories have the id {first['id']}; give each its own")
    if _is_placeholder(entries[0], entries[1:], content["annotations"]):
        findings.warn("placeholder category ignored", f"category 0 `{entries[0]['name']}` in {path.name}")
        entries = entries[1:]
    elif entries[0]["id"] == 0:
        findings.warn("category id 0, which some programs take for the background", f"`{entries[0]['name']}`")
    names = tuple(class_name(str(entry["name"])) for entry in entries)
    for entry, name in zip(entries, names, strict=True):
        if name != str(entry["name"]):
            findings.warn(NAMES_CLEANED, f"`{name}` in {path.name}")
    return Categories(names, tuple(entry["id"] for entry in entries))


def _is_placeholder(first: Entry, others: list[Entry], annotations: list[Entry]) -> bool:
    """Whether category 0 is the project name that Roboflow adds as the parent of the real classes."""
    return (
        first["id"] == 0
        and bool(others)
        and all(other.get("supercategory") == first["name"] for other in others)
        and all(annotation.get("category_id") != 0 for annotation in annotations)
    )


class _Reader:
    """Converts the entries of a file to records, and collects errors in `findings`."""

    def __init__(self, path: Path, pictures: Pictures, categories: Categories, findings: Findings) -> None:
        self.path, self.pictures, self.findings = path, pictures, findings
        self.label_of = {category: label for label, category in enumerate(categories.ids, start=1)}

    def images(self, entries: list[Entry]) -> dict[int, tuple[Entry, list[Entry]]]:
        """Index images by id, each with an empty list for its annotations."""
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
        """Assign each annotation to its image."""
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
        """Convert an image with its annotations."""
        file_name = image.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise DoubleheadError(f"{self.path}: image {image['id']} has no `file_name`")
        file = self.pictures.find(file_name, f"{self.path}: image {image['id']}")
        width, height = image.get("width"), image.get("height")
        if not (_is_id(width) and _is_id(height) and width > 0 and height > 0):
            width, height = image_size(file)

        boxes, labels, crowd, areas = [], [], [], []
        for annotation in annotations:
            with self.findings.collect("boxes that cannot be read", file):
                where = f"{self.path}: {_named(annotation)}"
                shown = f"{file_name}, {_named(annotation)}"
                box, reduced = _box(annotation, where)
                x1, y1, x2, y2 = box
                area = annotation.get("area")
                wanted = f"{where} needs a finite number as `area`, or none"
                area = (x2 - x1) * (y2 - y1) if area is None else _numbers([area], 1, wanted)[0]
                if reduced:
                    self.findings.warn(reduced, shown, file, box)
                ignored = is_set(annotation.get("ignore"))
                if ignored:
                    self.findings.warn("objects with `ignore` set, treated as crowds", shown, file, box)
                if note_box(box, width, height, shown, file, self.findings):
                    boxes.append(box)
                    labels.append(self.label_of[annotation["category_id"]])
                    crowd.append(ignored or is_set(annotation.get("iscrowd")))
                    areas.append(area)
        weight = image.get("weight", 1.0)
        return Record.of(image["id"], file, (width, height), boxes, labels, crowd, areas, weight=weight)


def _box(annotation: Entry, where: str) -> tuple[Box, str]:
    """Box of an annotation, and the kind of finding if it was derived from a mask."""
    bbox, segmentation = annotation.get("bbox"), annotation.get("segmentation")
    if (bbox is None or bbox == []) and segmentation:
        if isinstance(segmentation, dict):
            return rle_box(segmentation, f"{where}: its run-length mask"), MASKS
        pieces = segmentation if isinstance(segmentation, list) else [None]
        pieces = pieces if any(isinstance(piece, list) for piece in pieces) else [pieces]
        numbers = f"{where} needs a `segmentation` of finite numbers, pairs of x and y"
        flat = [_numbers(piece, len(piece) // 2 * 2 if isinstance(piece, list) else 0, numbers) for piece in pieces]
        points = [point for piece in flat for point in zip(piece[0::2], piece[1::2], strict=True)]
        return around(points, f"{where}: its polygon"), POLYGONS
    x, y, w, h = _numbers(bbox, 4, f"{where} needs a `bbox` of four finite numbers")
    return (x, y, x + w, y + h), ""


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
