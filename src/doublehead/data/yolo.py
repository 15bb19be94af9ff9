"""YOLO (`data.yaml`, a label file per image) to records."""

from __future__ import annotations

import math
import os.path
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from doublehead.common.errors import DoubleheadError, brief, printable
from doublehead.config import read_yaml
from doublehead.data.images import IMAGE_SUFFIXES, image_size
from doublehead.data.records import Box, Categories, Findings, Record, Split, note_box

SPLITS = ("train", "val", "valid", "test")  # the keys of data.yaml that name images
_PIXELS = 2.0  # a fraction beyond it was meant as pixels


@dataclass(frozen=True)
class DataYaml:
    """What a `data.yaml` says: where images are, and the classes."""

    path: Path
    root: Path
    sources: dict[str, tuple[str, ...]]  # split -> folders, or lists of images (.txt), inside root
    categories: Categories


def read_data_yaml(path: Path) -> DataYaml:
    """Read a `data.yaml`: `names` or `nc`, `train`, `val`, `test`, and `path`, against which these are; all else is
    left alone (nothing is ever downloaded).

    Class k of the label files keeps its number k as category id, from 0, and is label k + 1 in the model.

    Raises:
        DoubleheadError: the file cannot be read, its classes contradict each other, or it is of keypoints.
    """
    values = read_yaml(path)
    if values.get("kpt_shape") is not None:
        raise DoubleheadError(f"{path}: describes keypoints (`kpt_shape`); only boxes and polygons are read")
    root = values.get("path", "")
    if not isinstance(root, str):
        raise DoubleheadError(f"{path}: `path` must be a folder, not {brief(root)}")
    root = Path(os.path.normpath(path.parent / os.path.expanduser(root)))
    if not os.path.isdir(root):
        raise DoubleheadError(f"{path}: `path` names {root}, which is no folder")
    sources: dict[str, tuple[str, ...]] = {}
    for split in SPLITS:
        found = values.get(split)
        found = [found] if isinstance(found, str) else found
        if found is not None and not (isinstance(found, list) and all(isinstance(item, str) for item in found)):
            raise DoubleheadError(f"{path}: `{split}` must be a folder or a list of such, not {brief(found)}")
        if found:
            sources[split] = tuple(found)
    if not sources:
        raise DoubleheadError(f"{path}: names no images; add `train` and `val`, such as `train: images/train`")
    names = _names(path, values)
    return DataYaml(path, root, sources, Categories(names, tuple(range(len(names)))))


def read_yolo(name: str, data: DataYaml, source: str) -> Split:
    """Read the split under the key `source`: images by path, ids from 1.

    The labels of `images/x.jpg` are in `labels/x.txt`, or beside the image where no folder is called `images`: one
    object a line, class and centre x, centre y, width, height as fractions of the upright image. A polygon becomes the
    box around it. Four corners, which may be an oriented box, become the upright box around it. Both are counted.
    Lines with a confidence or with keypoints are faults. An image without a label file has no objects.

    Raises:
        DoubleheadError: a folder or list is missing or lies outside the dataset.
    """
    findings = Findings()
    records: list[Record] = []
    images = _images(data, source, findings)
    for number, image in enumerate(images, start=1):
        with findings.collect("images that cannot be used", image):
            records.append(_record(number, image, data, findings))
    _note_orphans(images, data.root, findings)
    return Split(name, records, data.categories, findings)


def label_file(image: Path, root: Path) -> Path:
    """Where the labels of an image are: the last folder `images` on its way from the root is `labels` instead."""
    *folders, name = image.relative_to(root).parts
    if "images" in folders:
        last = max(place for place, folder in enumerate(folders) if folder == "images")
        folders[last] = "labels"
    return root.joinpath(*folders, name).with_suffix(".txt")


def _names(path: Path, values: dict[str, Any]) -> tuple[str, ...]:
    names, count = values.get("names"), values.get("nc")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or not 0 < count < 1_000_000):
        raise DoubleheadError(f"{path}: `nc` must be the number of classes, not {brief(count)}")
    if names is None and count is not None:
        names = [f"class {number}" for number in range(count)]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))) or any(isinstance(key, bool) for key in names):
            raise DoubleheadError(f"{path}: the classes under `names` must be numbered 0, 1, 2 ... without gaps")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DoubleheadError(f"{path}: needs the classes as `names`, such as `names: [cat, dog]`")
    if count is not None and count != len(names):
        raise DoubleheadError(f"{path}: `nc` is {count}, but `names` holds {len(names)}; make them agree")
    for number, name in enumerate(names):
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise DoubleheadError(f"{path}: class {number} under `names` needs a name in quotes, not {brief(name)}")
    return tuple(printable(str(name)) for name in names)


def _images(data: DataYaml, source: str, findings: Findings) -> Sequence[Path]:
    found: dict[Path, None] = {}
    for text in data.sources[source]:
        place = _inside(data.path, data.root, data.root, text)
        if os.path.isdir(place):
            files = sorted(file for file in place.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                findings.fault("images that cannot be used", f"{data.path}: `{source}` names {place}, without images")
        elif place.suffix == ".txt" and os.path.isfile(place):
            files = list(_listed(place, data.root, findings))
        else:
            raise DoubleheadError(f"{data.path}: `{source}` names {place}, which is neither a folder nor a .txt list")
        for file in files:
            if file in found:
                findings.warn("images listed twice, read once", str(file), file)
            found[file] = None
    return list(found)


def _listed(path: Path, root: Path, findings: Findings) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DoubleheadError(f"{path}: cannot be read as a list of images ({error})") from error
    for line in filter(None, map(str.strip, lines)):
        with findings.collect("images that cannot be used"):
            # `./` is meant from the list's folder; other lines may be meant from there or from the root
            folder = root if not line.startswith("./") and os.path.exists(root / line) else path.parent
            yield _inside(path, root, folder, line)


def _inside(said_by: Path, root: Path, folder: Path, text: str) -> Path:
    """`folder / text`, refused outside `root`. Roboflow writes `../train/images` and means `train/images`."""
    place = Path(os.path.normpath(folder / text))
    if not place.is_relative_to(root):
        inside = Path(os.path.normpath(folder / text.removeprefix("../")))
        if not inside.is_relative_to(root) or not os.path.exists(inside):
            raise DoubleheadError(
                f"{said_by}: `{text}` lies outside the dataset's folder {root}; move it there",
                "images outside the dataset's folder",
            )
        place = inside
    return place


def _note_orphans(images: Sequence[Path], root: Path, findings: Findings) -> None:
    folders = {label_file(image, root).parent: image.parent for image in images}
    for labels, pictures in sorted(folders.items()):
        stems = {file.stem for file in pictures.iterdir()} if labels != pictures and pictures.is_dir() else set()
        for file in sorted(labels.glob("*.txt")) if stems else []:
            if file.stem not in stems and file.name != "classes.txt":  # which LabelImg puts there
                findings.warn("label files without an image", str(file.relative_to(root)))


def _record(number: int, image: Path, data: DataYaml, findings: Findings) -> Record:
    width, height = image_size(image)
    path = label_file(image, data.root)
    shown = PurePosixPath(image.relative_to(data.root))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        findings.warn("images without a label file, taken as empty", str(shown), image)
        lines = []
    except (OSError, UnicodeDecodeError) as error:
        raise DoubleheadError(f"{path}: cannot be read as YOLO labels ({error})") from error

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
                kind = corners if len(line.split()) == 9 else "polygons reduced to the box around them"
                findings.warn(kind, where, image, box)
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
