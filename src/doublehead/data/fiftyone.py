"""FiftyOne's own formats, FiftyOneImageDetectionDataset and FiftyOneDataset, to records."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, canonical, split_of_folder
from doublehead.data.objects import Item, NotMine, Splits, Thing, gather, image_in, label_in, number, size_of
from doublehead.data.records import Findings
from doublehead.data.text import is_set, read_json

_FIELDS = ("ground_truth", "detections")  # of a sample, if several fields have boxes


def find_fiftyone(folder: Folder) -> Splits | NotMine | None:
    """Splits of `labels.json` by folders, or of `samples.json` by the tags of its samples, else one."""
    samples: list[tuple[str, tuple[str, dict[str, Any], list[Any]]]] = []
    for file in folder.suffixed("labels.json", "samples.json"):
        content = _load(folder.path(file))
        split = split_of_folder(file) or "all"
        if isinstance(content.get("samples"), list):
            for sample in content["samples"]:
                samples.append((_tagged(sample) or split, (file, *_of_sample(sample))))
        elif isinstance(content.get("labels"), dict):
            classes = content.get("classes") or []
            for name, found in content["labels"].items():
                samples.append((split, (file, {"filepath": name}, _called(found, classes))))
    return gather(folder, samples, _items)


def _load(path: Path) -> dict[str, Any]:
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def _tagged(sample: Any) -> str | None:
    tags = sample.get("tags") if isinstance(sample, dict) else None
    known = [canonical(tag) for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return next((tag for tag in known if tag in ("train", "val", "test")), None)


def _of_sample(sample: Any) -> tuple[dict[str, Any], list[Any]]:
    """A sample, and the detections of the field that has the annotations."""
    sample = sample if isinstance(sample, dict) else {}
    fields = {key: value["detections"] for key, value in sample.items()
              if isinstance(value, dict) and isinstance(value.get("detections"), list)}  # fmt: skip
    chosen = next((field for field in _FIELDS if field in fields), next(iter(fields), ""))
    return sample, fields.get(chosen, [])


def _called(found: Any, classes: Any) -> list[Any]:
    """Detections with their classes in words, where the file numbers them."""
    named = []
    for detection in found if isinstance(found, list) else []:
        label = detection.get("label") if isinstance(detection, dict) else None
        if type(label) is int and isinstance(classes, list) and 0 <= label < len(classes):
            detection = detection | {"label": classes[label]}
        named.append(detection)
    return named


def _items(folder: Folder, samples: list[tuple[str, dict[str, Any], list[Any]]], findings: Findings) -> Iterator[Item]:
    for file, sample, detections in samples:
        path = folder.path(file)
        with findings.collect("images that cannot be used"):
            name = image_in(sample, "filepath", f"{path}: a sample")
            metadata = sample.get("metadata")
            metadata = metadata if isinstance(metadata, dict) else {}
            size = size_of(metadata.get("width"), metadata.get("height"))
            item = Item([name], f"{path}: `{name}`", posixpath.dirname(file), size, fractions=True)
            for detection in detections:
                with findings.collect("boxes that cannot be read"):
                    item.things.append(_thing(detection, item.where))
            yield item


def _thing(detection: Any, where: str) -> Thing:
    label = label_in(detection, "label", where)
    box = detection.get("bounding_box")
    if not isinstance(box, list) or len(box) != 4:
        raise DoubleheadError(f"{where}: `bounding_box` must be four fractions, not {brief(box)}")
    x, y, w, h = (number(value, f"{where}: `bounding_box`") for value in box)
    return Thing(label, (x, y, x + w, y + h), is_set(detection.get("iscrowd")))
