"""Pascal VOC (XML with ImageSets) to records."""

from __future__ import annotations

import math
import os.path
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from doublehead.common.errors import DoubleheadError
from doublehead.data.images import IMAGE_SUFFIXES, image_size
from doublehead.data.records import COORDINATE_LIMIT, Categories, Findings, Record, Split, note_box


def voc_categories(root: Path) -> Categories:
    """Class names found in all of `root/Annotations`, in alphabetical order with ids 1..C: alike for every split.

    Files that cannot be read are passed over: `read_voc` names them, where a split wants them.

    Raises:
        DoubleheadError: there is no object at all.
    """
    names: set[str] = set()
    for file in sorted((root / "Annotations").glob("*.xml")):
        with suppress(DoubleheadError):
            names.update(_text(file, item, "name") for item in _parse(file).findall("object"))
    if not names:
        raise DoubleheadError(f"{root / 'Annotations'}: no XML file there holds an object, so there are no classes")
    return Categories(tuple(sorted(names)), tuple(range(1, len(names) + 1)))


def read_voc(name: str, root: Path, list_file: Path, categories: Categories | None = None) -> Split:
    """Read the split whose image names `list_file` holds, one a line, such as `ImageSets/Main/train.txt`.

    Boxes are continuous edges (xmin, ymin, xmax, ymax), as LabelImg and CVAT write them: a box with xmin = xmax has
    no area. (The original VOC files count pixels from 1 and include the last: a difference of at most one pixel.)
    `difficult` objects become crowds: left out of training, and neither right nor wrong in evaluation, as in VOC.
    An image's id is its place in the list, from 1. Without `categories` they are collected by `voc_categories`.

    Files that are missing or malformed are left out, each a fault in the split's findings.

    Raises:
        DoubleheadError: the list or the folder of images is missing, or there are no classes.
    """
    categories = categories or voc_categories(root)
    label_of = {category: label for label, category in enumerate(categories.names, start=1)}
    findings = Findings()
    image_of = _images(root / "JPEGImages", findings)
    records: list[Record] = []
    for number, stem in enumerate(_stems(root, list_file, findings), start=1):
        with findings.collect("images that cannot be used"):
            records.append(_record(number, root, stem, image_of, label_of, findings))
    return Split(name, records, categories, findings)


def _stems(root: Path, list_file: Path, findings: Findings) -> Iterable[str]:
    try:
        lines = list_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DoubleheadError(f"{list_file}: cannot be read as a list of image names ({error})") from error
    stems: dict[str, None] = {}
    for line in filter(None, map(str.strip, lines)):
        if "/" in line or "\\" in line:
            sentence = f"{list_file}: `{line}` is a path; write the plain name of the image, without its folder"
            findings.fault("images outside the dataset's folder", sentence)
            continue
        # VOC's lists per class put 1, 0 or -1 behind the name; a name may itself hold blanks
        stem = line if os.path.exists(root / "Annotations" / f"{line}.xml") else re.sub(r"\s+(-1|0|1)$", "", line)
        if stem in stems:
            findings.warn("images listed twice, read once", f"{stem} in {list_file.name}")
        stems[stem] = None
    return stems


def _images(folder: Path, findings: Findings) -> dict[str, Path]:
    if not folder.is_dir():
        raise DoubleheadError(f"{folder}: there is no such folder of images")
    image_of: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            if file.stem in image_of:
                findings.warn("images of the same name, the last one taken", f"{image_of[file.stem].name}, {file.name}")
            image_of[file.stem] = file
    return image_of


def _record(
    number: int, root: Path, stem: str, image_of: dict[str, Path], label_of: dict[str, int], findings: Findings
) -> Record:
    path = root / "Annotations" / f"{stem}.xml"
    tree = _parse(path)
    file = _image(path, tree, image_of)
    width, height = (int(_number(path, tree, f"size/{side}", default=0)) for side in ("width", "height"))
    if width <= 0 or height <= 0:
        width, height = image_size(file)

    boxes, labels, crowd = [], [], []
    for item in tree.findall("object"):
        with findings.collect("boxes that cannot be read", file):
            category = _text(path, item, "name")
            if category not in label_of:
                raise DoubleheadError(
                    f"{path}: class `{category}` is not among {', '.join(label_of)}", "unknown classes"
                )
            x1, y1, x2, y2 = (_number(path, item, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
            difficult = _number(path, item, "difficult", default=0) != 0
            if note_box((x1, y1, x2, y2), width, height, f"{file.name} ({category})", file, findings):
                boxes.append((x1, y1, x2, y2))
                labels.append(label_of[category])
                crowd.append(difficult)
    edges = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Record(
        image_id=number,
        path=file,
        width=width,
        height=height,
        boxes=edges,
        labels=np.array(labels, dtype=np.int64),
        crowd=np.array(crowd, dtype=bool),
        areas=(edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1]),
    )


def _image(path: Path, tree: Any, image_of: dict[str, Path]) -> Path:
    """The image of an XML file: of the same stem, as VOC has it; `<filename>` decides only where that is missing."""
    stem = Path((tree.findtext("filename") or "").strip()).stem
    file = image_of.get(path.stem) or image_of.get(stem)
    if file is None:
        raise DoubleheadError(
            f"{path}: its image `{path.stem}` is not in {path.parent.parent / 'JPEGImages'}", "images missing"
        )
    return file


def _parse(path: Path) -> Any:
    try:
        return parse(path)
    except FileNotFoundError as error:
        raise DoubleheadError(
            f"{path}: there is no such file, but the list names it", "annotation files missing"
        ) from error
    except (OSError, ParseError, ValueError, DefusedXmlException) as error:
        raise DoubleheadError(f"{path}: cannot be read as XML ({error})", "annotation files unreadable") from error


def _text(path: Path, node: Any, field: str) -> str:
    text = (node.findtext(field) or "").strip()
    if not text:
        raise DoubleheadError(f"{path}: an object has no <{field}>")
    return text


def _number(path: Path, node: Any, field: str, default: float | None = None) -> float:
    text = (node.findtext(field) or "").strip()
    if not text and default is not None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < COORDINATE_LIMIT:  # so written that NaN fails too
        raise DoubleheadError(f"{path}: <{field}> must be a finite number, not `{text[:40]}`")
    return value
