"""Pascal VOC (one XML file per image) to records."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from doublehead.common.errors import DoubleheadError
from doublehead.data.folder import OUTSIDE, Folder, alike, canonical, split_of_folder
from doublehead.data.images import IMAGE_SUFFIXES
from doublehead.data.objects import (
    MASKS,
    POLYGONS,
    ROTATED,
    Item,
    NotMine,
    Parse,
    Splits,
    Thing,
    around,
    around_rotated,
    number,
    size_of,
    splits_by_name,
)
from doublehead.data.records import Box, Findings
from doublehead.data.text import is_set, read_text


def find_voc(folder: Folder) -> Splits | NotMine | None:
    """Splits of XML files, wherever they lie: by lists of image names, else by folders, else one."""
    files = xml_files(folder, "annotation")
    if not files:
        return None
    lists = _lists(folder, files)
    if lists:
        return voc_splits(folder, files, lists)
    by_folder: dict[str, list[str]] = {}
    for file in files:
        by_folder.setdefault(split_of_folder(file) or "all", []).append(file)
    return _splits(folder, files, {split: lambda _, found=found: found for split, found in by_folder.items()})


def voc_splits(folder: Folder, files: list[str], lists: dict[str, str]) -> Splits:
    """Splits of XML files by lists of image names, such as `ImageSets/Main/train.txt`.

    A box has continuous edges (xmin, ymin, xmax, ymax), as LabelImg and CVAT write them, so one with xmin = xmax has no
    area. (The original VOC files count pixels from 1 and include the last: a difference of at most one pixel.) Where
    an object has a polygon or a rotated box instead, the upright box around it is taken, and counted. `difficult`
    objects become crowds: left out of training, and neither right nor wrong in evaluation, as in VOC.

    Files that are missing or malformed are left out, each a fault in the split's findings.

    Args:
        folder: the dataset.
        files: its XML files.
        lists: split -> list of image names, one a line, with or without folder and extension.
    """
    by_stem: dict[str, list[str]] = {}
    for file in files:
        by_stem.setdefault(Path(file).stem, []).append(file)
    return _splits(folder, files, {split: partial(_listed, folder, by_stem, file) for split, file in lists.items()})


def xml_files(folder: Folder, tag: str) -> list[str]:
    """XML files whose root is `tag`; of each folder a few are looked into."""
    return folder.of_kind(".xml", partial(_is_root, tag=tag))


def parse_xml(path: Path) -> Any:
    """The root of an XML file; entities are refused.

    Raises:
        DoubleheadError: the file is missing or malformed.
    """
    try:
        return parse(path).getroot()
    except FileNotFoundError as error:
        raise DoubleheadError(
            f"{path}: there is no such file, but the list names it", "annotation files missing"
        ) from error
    except (OSError, ParseError, ValueError, LookupError, DefusedXmlException) as error:
        raise DoubleheadError(f"{path}: cannot be read as XML ({error})", "annotation files unreadable") from error


def _is_root(path: Path, tag: str) -> bool:
    try:
        with path.open("rb") as content:
            head = content.read(4096).replace(b"\0", b"")  # UTF-16 has one in every letter of a tag
    except OSError:
        return False
    return bool(re.search(rb"<%b[\s>]" % tag.encode(), head))


def _lists(folder: Folder, files: list[str]) -> dict[str, str]:
    inside = [file for file in folder.suffixed(".txt") if re.search(r"(^|/)imagesets/", file, re.IGNORECASE)]
    main = [file for file in inside if Path(file).parent.name.lower() == "main"] or inside
    # lists of one class, such as aeroplane_train.txt, name the same images as train.txt
    whole = {Path(file).stem: file for file in main if not _is_of_class(Path(file).stem)}
    if whole:
        return whole
    stems = {Path(file).stem for file in files}
    return {split: file for split, file in folder.text_lists().items() if _names_any(folder, file, stems)}


def _is_of_class(stem: str) -> bool:
    name, _, split = stem.rpartition("_")
    return bool(name) and canonical(split) in ("train", "val", "trainval", "test")


def _names_any(folder: Folder, file: str, stems: set[str]) -> bool:
    return any(_stem(line) in stems for line in _lines(folder, file))


def _lines(folder: Folder, file: str) -> list[str]:
    text = read_text(folder.path(file), "a list of image names")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _stem(line: str) -> str:
    name = line.replace("\\", "/").rpartition("/")[2]
    path = Path(name)
    return path.stem if path.suffix.lower() in (*IMAGE_SUFFIXES, ".xml") else name


def _listed(folder: Folder, by_stem: dict[str, list[str]], list_file: str, findings: Findings) -> Iterator[str]:
    """The XML files of the images that a list names."""
    path, seen = folder.path(list_file), set()
    for line in _lines(folder, list_file):
        with findings.collect("annotation files missing"):
            if ".." in line.replace("\\", "/").split("/"):
                sentence = f"{path}: `{line}` lies outside the dataset's folder; write only the image's name"
                raise DoubleheadError(sentence, OUTSIDE)
            # VOC's lists per class put 1, 0 or -1 behind the name; a name may itself hold blanks
            plain = line if _stem(line) in by_stem else re.sub(r"\s+(-1|0|1)$", "", line)
            stem = _stem(plain)
            if stem not in by_stem:
                home = folder.path(next(iter(by_stem.values()))[0]).parent if by_stem else folder.root
                raise DoubleheadError(f"{home / stem}.xml: there is no such file, but the list names it")
            dirs = plain.replace("\\", "/").split("/")[-2::-1]
            file = max(by_stem[stem], key=lambda file: alike(file.split("/")[-2::-1], dirs))
            if file in seen:
                findings.warn("images listed twice, read once", f"{stem} in {path.name}")
            else:
                seen.add(file)
                yield file


def _splits(folder: Folder, files: list[str], chosen: dict[str, Any]) -> Splits:
    home = _common_folder(files)

    def items(findings: Findings, split: str) -> Iterator[Item]:
        for file in chosen[split](findings):
            with findings.collect("images that cannot be used"):
                yield _item(folder, file, home, findings)

    def names() -> Iterable[str]:
        """Of all files, so that classes are alike however the lists change; faults are told where a split has them."""
        for file in files:
            unheard = Findings()
            with unheard.collect(""):
                root = parse_xml(folder.path(file))
                objects = (item for item in root.findall("object") if not _deleted(item))
                yield from filter(None, ((item.findtext("name") or "").strip() for item in objects))

    sources: dict[str, Parse] = {split: partial(items, split=split) for split in chosen}
    return splits_by_name(folder, sources, names)


def _common_folder(files: list[str]) -> str:
    first, last = min(files).split("/")[:-1], max(files).split("/")[:-1]
    return "/".join(first[: alike(first, last)]) + "/" if alike(first, last) else ""


def _item(folder: Folder, file: str, home: str, findings: Findings) -> Item:
    path = folder.path(file)
    root = parse_xml(path)
    inner = Path(file.removeprefix(home)).with_suffix("").as_posix()
    # VOC calls an image as its XML file; <filename> and <path> decide only where that is missing
    names = [inner, *filter(None, ((root.findtext(field) or "").strip() for field in ("filename", "path")))]
    width, height = (number(_text(root, f"size/{side}", "0"), f"{path}: <size/{side}>") for side in ("width", "height"))
    item = Item(names, str(path), Path(file).parent.as_posix(), size_of(width, height))
    for node in root.findall("object"):
        if _deleted(node):
            findings.warn("deleted objects ignored", str(path))
            continue
        with findings.collect("boxes that cannot be read", path):
            item.things.append(_thing(path, node))
    return item


def _deleted(node: Any) -> bool:
    """Whether LabelMe's web tool marks an object as deleted. It keeps such objects in the file."""
    return is_set(_text(node, "deleted"))


def _thing(path: Path, node: Any) -> Thing:
    category = _text(node, "name")
    if not category:
        raise DoubleheadError(f"{path}: an object has no <name>")
    crowd = is_set(_text(node, "difficult"))

    def edge(field: str) -> float:
        return number(_text(node, field), f"{path}: <{field}>")

    def box_in(home: str) -> Box:
        x1, y1, x2, y2 = (edge(f"{home}/{field}") for field in ("xmin", "ymin", "xmax", "ymax"))
        return x1, y1, x2, y2

    if node.find("bndbox") is None:
        if node.find("polygon") is not None:
            points = _points(path, node.find("polygon"))
            reduced = "" if _text(node, "type") == "bounding_box" else POLYGONS
            return Thing(category, around(points, f"{path}: <polygon>"), crowd, reduced)
        if node.find("segm/box") is not None:  # LabelMe's masks, as CVAT writes them
            return Thing(category, box_in("segm/box"), crowd, MASKS)
        if node.find("robndbox") is not None:
            x, y, w, h, angle = (edge(f"robndbox/{field}") for field in ("cx", "cy", "w", "h", "angle"))
            box = around_rotated((x - w / 2, y - h / 2, x + w / 2, y + h / 2), math.remainder(angle, math.tau))
            return Thing(category, box, crowd, ROTATED)
    return Thing(category, box_in("bndbox"), crowd)


def _points(path: Path, polygon: Any) -> list[tuple[float, float]]:
    """Points as LabelMe writes them, <pt><x/><y/></pt>, or as Roboflow does, <x1/><y1/><x2/><y2/>."""
    what = f"{path}: a point of <polygon>"
    if polygon.find("pt") is not None:
        return [(number(_text(pt, "x"), what), number(_text(pt, "y"), what)) for pt in polygon.findall("pt")]
    values = {child.tag: (child.text or "").strip() for child in polygon}
    keys = [key[1:] for key in values if re.fullmatch(r"x\d+", key)]
    return [(number(values[f"x{key}"], what), number(values.get(f"y{key}", ""), what)) for key in keys]


def _text(node: Any, field: str, default: str = "") -> str:
    return (node.findtext(field) or "").strip() or default
