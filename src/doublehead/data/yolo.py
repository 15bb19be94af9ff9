"""YOLO (a label file per image) to records."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from doublehead.common.errors import DoubleheadError
from doublehead.data.folder import OUTSIDE, Folder, Pictures, spellings, split_of_folder
from doublehead.data.images import image_size
from doublehead.data.objects import POLYGONS, NotMine, Splits, around
from doublehead.data.records import Box, Findings, Record, Split, note_box
from doublehead.data.text import read_text
from doublehead.data.yolo_layout import (
    YAMLS,
    YoloData,
    from_names,
    has_names,
    is_data_yaml,
    is_label_file,
    read_data_yaml,
    source_of,
)

_PIXELS = 2.0  # a fraction beyond it was meant as pixels


def find_yolo(folder: Folder) -> Splits | NotMine | None:
    """Splits of a `data.yaml`; of Darknet's `obj.data` and lists; or of label files and a file of class names."""
    for file in sorted(folder.suffixed(*YAMLS), key=_depth):
        if posixpath.basename(file).lower() in YAMLS and is_data_yaml(folder.path(file)):
            return yolo_splits(read_data_yaml(folder.path(file), folder, posixpath.dirname(file)))
    names = sorted((file for file in folder.files if has_names(file)), key=_depth)
    labels = next((file for file in folder.suffixed(".txt") if is_label_file(folder, file)), None)
    if not labels and not (names and folder.suffixed("obj.data")):
        return None
    for file in names:
        with suppress(DoubleheadError):  # notes.json of something else
            return yolo_splits(from_names(folder, file))
    return NotMine(f"YOLO's labels in {labels}", "data.yaml or classes.txt, with the names of the classes")


def yolo_splits(data: YoloData) -> Splits:
    """The splits that a dataset of YOLO's has."""
    return {split: partial(read_yolo, data=data, source=split) for split in data.sources}


def read_yolo(name: str, data: YoloData, source: str) -> Split:
    """Read the split under the key `source`: images by path, ids from 1.

    The labels of `images/x.jpg` are in `labels/x.txt`, beside the image, or in the one file of this name: one object a
    line, class and center x, center y, width, height as fractions of the upright image. A polygon becomes the box
    around it. Four corners, which may be an oriented box, become the upright box around it. Both are counted. Lines
    with a confidence or with keypoints are faults. An image without a label file has no objects.

    Raises:
        DoubleheadError: a folder or list is missing or lies outside the dataset.
    """
    findings = Findings()
    for kind, text in data.notes:
        findings.warn(kind, f"{text} in {data.said_by.name}")
    records: list[Record] = []
    images = _images(data, source, name, findings)
    of = {image: label_file(image, data, name) for image in images}
    for number, image in enumerate(images, start=1):
        with findings.collect("images that cannot be used", image):
            records.append(_record(number, image, of[image], data, findings))
    _note_orphans(data, of, findings)
    return Split(name, records, data.categories, findings)


def label_file(image: Path, data: YoloData, split: str = "") -> Path | None:
    """The label file of an image; None: there is none.

    In turn: with the last folder `images` on the way from the dataset called `labels`, beside the image, or the only
    file of this name in the dataset, and not in the folder of another split.
    """
    *folders, name = image.relative_to(data.folder.root).as_posix().split("/")
    stem = posixpath.splitext(name)[0]
    places = [folders]
    plain = [folder.lower() for folder in folders]
    if "images" in plain:
        last = len(plain) - 1 - plain[::-1].index("images")
        for labels in ("labels", "Labels"):
            places.insert(0, [*folders[:last], labels, *folders[last + 1 :]])
    for place in places:
        for text in (f"{stem}.txt", f"{name}.txt"):
            file = "/".join([*place, text])
            if file in data.folder.files:
                return data.folder.path(file)
    found = data.labels.get(stem) or data.labels.get(name) or []
    known = ("train", "val", "test")
    found = [file for file in found if split not in known or split_of_folder(file) in (None, split)]
    return data.folder.path(found[0]) if len(found) == 1 and _is_home_of(found[0], folders) else None


def _is_home_of(file: str, folders: list[str]) -> bool:
    """Whether a label file is of an image in `folders`, judged by what is special in its own folder's name."""
    named = [part for part in file.split("/")[:-1] if "label" not in part.lower() and "annot" not in part.lower()]
    return all(part in folders for part in named)


def _depth(file: str) -> tuple[int, str]:
    return file.count("/"), file


def _images(data: YoloData, source: str, split: str, findings: Findings) -> list[Path]:
    found: dict[Path, None] = {}
    folder = data.folder
    for text in data.sources[source]:
        place = source_of(folder, data.beside, text)
        if place is None:
            raise _no_source(data, source, text)
        if place in folder.files:
            files = list(_listed(folder, place, split, findings))
        else:
            files = [folder.path(file) for file in folder.images_below(place)]
            if not files:
                fault = f"{data.said_by}: `{source}` names {folder.path(place)}, without images"
                findings.fault("images that cannot be used", fault)
        for path in files:
            if path in found:
                findings.warn("images listed twice, read once", str(path), path)
            found[path] = None
    return list(found)


def _no_source(data: YoloData, source: str, text: str) -> DoubleheadError:
    if all(data.folder.place(name, data.beside) is None for name in spellings(text)):
        return DoubleheadError(
            f"{data.said_by}: `{text}` lies outside the dataset's folder {data.folder.root}; move it there", OUTSIDE
        )
    place = data.folder.root / data.beside / text
    return DoubleheadError(f"{data.said_by}: `{source}` names {place}, which is neither a folder nor a .txt list")


def _listed(folder: Folder, file: str, split: str, findings: Findings) -> Iterator[Path]:
    text = read_text(folder.path(file), "a list of images")
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    pictures = Pictures(folder, lines, posixpath.dirname(file), split, ("",))
    for number, line in enumerate(lines, start=1):
        with findings.collect("images that cannot be used"):
            yield pictures.find(line, f"{folder.path(file)}: image {number}")


def _note_orphans(data: YoloData, of: dict[Path, Path | None], findings: Findings) -> None:
    """Label files among those that were used, which no image has."""
    used = {file for file in of.values() if file}
    stems = {image.stem for image in of} | {image.name for image in of}
    homes = {file.parent for file in used} - {image.parent for image in of}
    everywhere = {Path(image).stem for image in data.folder.images}
    for files in data.labels.values():
        for file in files:
            path = data.folder.path(file)
            if path.parent in homes and path not in used and path.stem not in stems | everywhere:
                findings.warn("label files without an image", file)


def _record(number: int, image: Path, path: Path | None, data: YoloData, findings: Findings) -> Record:
    width, height = image_size(image)
    shown = image.relative_to(data.folder.root).as_posix()
    lines: list[str] = []
    if path is None:
        findings.warn("images without a label file, taken as empty", shown, image)
    else:
        lines = read_text(path, "YOLO labels").splitlines()

    boxes, labels = [], []
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with findings.collect("lines of labels that cannot be read", image):
            label, box = _object(f"{path}: line {place}", line.split(), len(data.categories))
            x1, y1, x2, y2 = box
            box = (x1 * width, y1 * height, x2 * width, y2 * height)
            where = f"{shown}, line {place}"
            if len(line.split()) > 5:
                corners = "four corners reduced to the upright box around them"
                findings.warn(corners if len(line.split()) == 9 else POLYGONS, where, image, box)
            if note_box(box, width, height, where, image, findings):
                boxes.append(box)
                labels.append(label)
    return Record.of(number, image, (width, height), boxes, labels)


def _object(where: str, fields: list[str], classes: int) -> tuple[int, Box]:
    """Label 1..C and box (xyxy, as fractions) of one line."""
    values = [_number(where, field) for field in fields]
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        more = "; a confidence behind the box has no place in labels" if len(values) == 6 else ""
        raise DoubleheadError(
            f"{where} has {len(values)} numbers; a box has 5 (class, x, y, width, height), a polygon a class and "
            f"pairs of x, y{more}"
        )
    number = values[0]
    if number != int(number) or not 0 <= number < classes:
        raise DoubleheadError(
            f"{where} is of class {fields[0]}, but the classes are 0 to {classes - 1}", "unknown classes"
        )
    for value in values[1:]:
        if abs(value) > _PIXELS:
            raise DoubleheadError(
                f"{where} holds {value:g}; coordinates are fractions of the image's size, not pixels",
                "coordinates that are not fractions",
            )
    if len(values) == 5:
        x, y, w, h = values[1:]
        return int(number) + 1, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return int(number) + 1, around(zip(values[1::2], values[2::2], strict=True), where)


def _number(where: str, field: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DoubleheadError(f"{where} holds `{field[:40]}`, which is not a finite number")
    return value
