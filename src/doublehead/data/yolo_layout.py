"""What a YOLO dataset says of itself: `data.yaml`, files of class names, and where its images are."""

from __future__ import annotations

import json
import os.path
import posixpath
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_folder
from doublehead.data.objects import NAMES_CLEANED
from doublehead.data.records import Categories
from doublehead.data.text import class_name, read_strings, read_text

SPLITS = ("train", "val", "valid", "validation", "dev", "test")  # the keys of data.yaml that name images
YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "notes.json", "predefined_classes.txt")
_NOT_LABELS = (*_NAMES, "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt")


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
    elif len(sources) > 1 and all(source_of(folder, beside, text) is None for text in sources.get("test", (".",))):
        left_out = ", ".join(sources.pop("test"))  # which Roboflow names, and does not always export
        notes.append(("splits without images ignored", f"`test: {left_out}`"))
    if not sources:
        raise DoubleheadError(f"{path}: names no images; add `train` and `val`, such as `train: images/train`")
    return YoloData(path, folder, beside, sources, categories, notes)


def from_names(folder: Folder, file: str) -> YoloData:
    """A dataset without `data.yaml`, whose classes are in a file such as `classes.txt`.

    Raises:
        DoubleheadError: the file has no class names.
    """
    path = folder.path(file)
    categories, cleaned = _categories(path, _names_in(path))
    return YoloData(path, folder, "", _found_sources(folder), categories, [(NAMES_CLEANED, name) for name in cleaned])


def source_of(folder: Folder, beside: str, text: str) -> str | None:
    """The folder or list of images that is meant."""
    home = folder.find(text, beside, folder.folders)
    return folder.find(text, beside, folder.suffixed(".txt")) if home is None else home


def is_data_yaml(path: Path) -> bool:
    """Whether a YAML file describes a YOLO dataset, or cannot be read, which is then to be told."""
    try:
        values = read_strings(path)
    except DoubleheadError:
        return True
    return "format" not in values and not values.keys().isdisjoint(("names", "nc", *SPLITS))


def has_names(file: str) -> bool:
    """Whether a file holds class names, by its own name."""
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


def is_label_file(folder: Folder, file: str) -> bool:
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
            raise DoubleheadError(f"{path}: `{split}` must be a folder or a list of folders, not {brief(found)}")
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
        raise DoubleheadError(f"{path}: `path` names {named}, which is not a folder")
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
