"""YOLO (a label file per image) to records: with a `data.yaml`, Darknet's `obj.data`, or the class names alone."""

from __future__ import annotations

import json
import math
import os.path
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import OUTSIDE, Folder, Pictures, spellings, split_of_folder
from doublehead.data.images import image_size
from doublehead.data.objects import NAMES_CLEANED, POLYGONS, NotMine, Splits
from doublehead.data.records import Box, Categories, Findings, Record, Split, note_box
from doublehead.data.text import class_name, read_strings, read_text

SPLITS = ("train", "val", "valid", "validation", "dev", "test")  # the keys of data.yaml that name images
YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "notes.json", "predefined_classes.txt")
_NOT_LABELS = (*_NAMES, "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt")
_PIXELS = 2.0  # a fraction beyond it was meant as pixels


@dataclass(frozen=True)
class YoloData:
    """Where images and labels are, and the classes."""

    said_by: Path  # the file that has the classes
    folder: Folder
    beside: str  # the folder of that file
    sources: dict[str, tuple[str, ...]]  # split -> folders, or lists of images (.txt)
    categories: Categories
    notes: Sequence[tuple[str, str]] = ()  # what was changed or left out: kinds of findings, and what

    @cached_property
    def labels(self) -> dict[str, list[str]]:
        """Label files by the names of their images, with and without extension."""
        found: dict[str, list[str]] = {}
        for file in self.folder.suffixed(".txt"):
            name = posixpath.basename(file)
            if name.lower() not in _NOT_LABELS:
                found.setdefault(posixpath.splitext(name)[0], []).append(file)
        return found


def find_yolo(folder: Folder) -> Splits | NotMine | None:
    """Splits of a `data.yaml`; of Darknet's `obj.data` and lists; or of label files and a file of class names."""
    for file in sorted(folder.suffixed(*YAMLS), key=_depth):
        if posixpath.basename(file).lower() in YAMLS and _is_data_yaml(folder.path(file)):
            return yolo_splits(read_data_yaml(folder.path(file), folder, posixpath.dirname(file)))
    names = sorted((file for file in folder.files if _has_names(file)), key=_depth)
    labels = next((file for file in folder.suffixed(".txt") if _is_label_file(folder, file)), None)
    if not labels and not (names and folder.suffixed("obj.data")):
        return None
    for file in names:
        with suppress(DoubleheadError):  # notes.json of something else
            categories, cleaned = _categories(folder.path(file), _names_in(folder.path(file)))
            notes = [(NAMES_CLEANED, name) for name in cleaned]
            data = YoloData(folder.path(file), folder, "", _found_sources(folder), categories, notes)
            return yolo_splits(data)
    return NotMine(f"YOLO's labels in {labels}", "data.yaml or classes.txt, with the names of the classes")


def yolo_splits(data: YoloData) -> Splits:
    """The splits that a dataset of YOLO's has."""
    return {split: partial(read_yolo, data=data, source=split) for split in data.sources}


def read_data_yaml(path: Path, folder: Folder | None = None, beside: str = "") -> YoloData:
    """Read a `data.yaml`: `names` or `nc`, `train`, `val`, `test`, and `path`, against which these are; all else is
    left alone (nothing is ever downloaded). Without `train`, `val` and `test` the folders tell the splits.

    Class k of the label files keeps its number k as category id, from 0, and is label k + 1 in the model.

    Args:
        path: the file.
        folder: the dataset that it lies in; None: the file's own folder.
        beside: the file's folder in the dataset.

    Raises:
        DoubleheadError: the file cannot be read, its classes contradict each other, or it is of keypoints.
    """
    values = read_strings(path)
    if isinstance(values.get("kpt_shape"), list):
        raise DoubleheadError(f"{path}: describes keypoints (`kpt_shape`); only boxes and polygons are read")
    sources = _sources(path, values)
    folder, beside = _root(path, values, sources, folder, beside)
    categories, cleaned = _categories(path, _names(path, values))
    notes = [(NAMES_CLEANED, name) for name in cleaned]
    if not sources:
        sources, beside = _found_sources(folder), ""
    elif len(sources) > 1 and all(_source(folder, beside, text) is None for text in sources.get("test", (".",))):
        left_out = ", ".join(sources.pop("test"))  # which Roboflow names, and does not always export
        notes.append(("splits without images left out", f"`test: {left_out}`"))
    if not sources:
        raise DoubleheadError(f"{path}: names no images; add `train` and `val`, such as `train: images/train`")
    return YoloData(path, folder, beside, sources, categories, notes)


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


def _is_data_yaml(path: Path) -> bool:
    try:
        values = read_strings(path)
    except DoubleheadError:
        return True  # which is to be told
    return "format" not in values and not values.keys().isdisjoint(("names", "nc", *SPLITS))


def _has_names(file: str) -> bool:
    name = posixpath.basename(file).lower()
    return name in _NAMES or name.endswith(".names")


def _names_in(path: Path) -> list[str]:
    text = read_text(path, "a list of class names")
    if path.suffix.lower() != ".json":
        lines = [line.strip() for line in text.split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        return lines
    try:
        entries = sorted(json.loads(text)["categories"], key=lambda entry: entry["id"])
        return [str(entry["name"]) for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DoubleheadError(f"{path}: has no list of `categories` with ids and names") from error


def _is_label_file(folder: Folder, file: str) -> bool:
    """Whether a text file starts with a line of YOLO's."""
    if posixpath.basename(file).lower() in _NOT_LABELS:
        return False
    with suppress(DoubleheadError):
        lines = read_text(folder.path(file), "labels").split("\n", 1)
        with suppress(ValueError):
            return len([float(field) for field in lines[0].split()]) >= 5
    return False


def _found_sources(folder: Folder) -> dict[str, tuple[str, ...]]:
    """Sources by lists called after splits, else by folders called so, else all images."""
    lists = {
        split: file for split, file in folder.text_lists().items() if _lists_images(folder, file)
    }  # fmt: skip
    if lists:
        return {split: (file,) for split, file in lists.items()}
    found: dict[str, list[str]] = {}
    for file in folder.images:
        split = split_of_folder(file)
        place = found.setdefault(split or "all", [])
        home = posixpath.dirname(file)
        if home not in place:
            place.append(home)
    if set(found) == {"all"}:
        return {"all": (".",)}
    return {split: tuple(homes) for split, homes in found.items() if split != "all"}


def _lists_images(folder: Folder, file: str) -> bool:
    with suppress(DoubleheadError):
        lines = read_text(folder.path(file), "a list of images").split()
        return bool(lines) and folder.has_image(lines[0].strip())
    return False


def _sources(path: Path, values: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    sources: dict[str, tuple[str, ...]] = {}
    for split in SPLITS:
        found = values.get(split)
        found = [found] if isinstance(found, str) else found
        if found is not None and not (isinstance(found, list) and all(isinstance(item, str) for item in found)):
            raise DoubleheadError(f"{path}: `{split}` must be a folder or a list of such, not {brief(found)}")
        found = [item for item in found or () if item not in ("", "null", "~", "None")]
        if found:
            sources[split] = tuple(found)
    return sources


def _root(
    path: Path, values: dict[str, Any], sources: dict[str, tuple[str, ...]], folder: Folder | None, beside: str
) -> tuple[Folder, str]:
    """The folder that `path` names; or the file's own, if that has the images and `path` is of another machine."""
    text = values.get("path", "")
    if not isinstance(text, str):
        raise DoubleheadError(f"{path}: `path` must be a folder, not {brief(text)}")
    named = Path(os.path.normpath(path.parent / os.path.expanduser(text)))
    own = folder or Folder(path.parent)
    if os.path.isdir(named):
        inside = os.path.realpath(named) == os.path.realpath(path.parent)
        return (own, beside) if inside else (Folder(named), "")
    if not any(own.find(item, beside, [*own.folders, *own.files]) for items in sources.values() for item in items):
        raise DoubleheadError(f"{path}: `path` names {named}, which is no folder")
    return own, beside


def _names(path: Path, values: dict[str, Any]) -> list[Any]:
    """Class names as written."""
    names, count = values.get("names"), values.get("nc")
    count = None if count in ("", "null", "~") else count
    if count is not None:
        text = count if isinstance(count, str) and count.isascii() and count.isdigit() and len(count) < 7 else "0"
        if not int(text):
            raise DoubleheadError(f"{path}: `nc` must be the number of classes, not {brief(count)}")
        count = int(text)
    if names in (None, "", "null", "~") and count is not None:
        names = [f"class {number}" for number in range(count)]
    if isinstance(names, dict):
        if set(names) != set(map(str, range(len(names)))):
            raise DoubleheadError(f"{path}: the classes under `names` must be numbered 0, 1, 2 ... without gaps")
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DoubleheadError(f"{path}: needs the classes as `names`, such as `names: [cat, dog]`")
    if count is not None and count != len(names):
        raise DoubleheadError(f"{path}: `nc` is {count}, but `names` holds {len(names)}; make them agree")
    return names


def _categories(path: Path, names: Sequence[Any]) -> tuple[Categories, tuple[str, ...]]:
    """Classes with ids from 0, and which of them had characters that cannot be seen."""
    for number, name in enumerate(names):
        if not isinstance(name, str) or not class_name(name):
            raise DoubleheadError(f"{path}: class {number} under `names` needs a name, not {brief(name)}")
    if not names:
        raise DoubleheadError(f"{path}: names no classes")
    seen = tuple(map(class_name, names))
    cleaned = tuple(new for old, new in zip(names, seen, strict=True) if old != new)
    return Categories(seen, tuple(range(len(seen)))), cleaned


def _images(data: YoloData, source: str, split: str, findings: Findings) -> list[Path]:
    found: dict[Path, None] = {}
    folder = data.folder
    for text in data.sources[source]:
        place = _source(folder, data.beside, text)
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


def _source(folder: Folder, beside: str, text: str) -> str | None:
    """The folder or list of images that is meant."""
    home = folder.find(text, beside, folder.folders)
    return folder.find(text, beside, folder.suffixed(".txt")) if home is None else home


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
    edges = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Record(
        image_id=number,
        path=image,
        width=width,
        height=height,
        boxes=edges,
        labels=np.array(labels, dtype=np.int64),
        crowd=np.zeros(len(labels), dtype=bool),
        areas=(edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1]),
    )


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
                "coordinates that are no fractions",
            )
    if len(values) == 5:
        x, y, w, h = values[1:]
        return int(number) + 1, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    xs, ys = values[1::2], values[2::2]
    return int(number) + 1, (min(xs), min(ys), max(xs), max(ys))


def _number(where: str, field: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DoubleheadError(f"{where} holds `{field[:40]}`, which is no finite number")
    return value
