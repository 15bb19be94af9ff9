"""Label Studio's JSON and JSON-MIN to records."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.images import IMAGE_SUFFIXES
from doublehead.data.objects import (
    POLYGONS,
    ROTATED,
    Item,
    NotMine,
    Splits,
    Thing,
    around,
    around_rotated,
    gather,
    ignore,
    number,
    pairs,
    size_of,
)
from doublehead.data.records import Box, Findings
from doublehead.data.text import dicts, head_has, read_json

Entry = dict[str, Any]


def find_label_studio(folder: Folder) -> Splits | NotMine | None:
    """Splits of JSON files with Label Studio's tasks: by the files' folders or names, else one."""
    files = folder.of_kind(".json", _has_tasks)
    tasks = [(file, task) for file in files for task in _tasks(folder.path(file))]
    return gather(folder, ((split_of_file(file), (file, task)) for file, task in tasks), _items)


def _has_tasks(path: Path) -> bool:
    return head_has(path, ['"data"', '"annotations"']) or head_has(path, ['"annotation_id"', '"annotator"'])


def _tasks(path: Path) -> list[Entry]:
    """The tasks in a file; none if it is something else."""
    content = dicts(read_json(path))
    minimal = [row for row in content if "annotation_id" in row]
    return _of_minimal(minimal) or [task for task in content if {"data", "annotations"} <= task.keys()]


def _of_minimal(rows: list[Entry]) -> list[Entry]:
    """JSON-MIN, which has a row per annotation with the regions of each tag, as tasks."""
    tasks: dict[str, Entry] = {}
    for row in rows:
        result = [{**region, "value": region} for tag in row.values() for region in dicts(tag)]
        task = tasks.setdefault(str(row.get("id")), {"id": row.get("id"), "data": row, "annotations": []})
        task["annotations"].append({"result": result, "created_at": row.get("created_at")})
    return list(tasks.values())


def _items(folder: Folder, tasks: list[tuple[str, Entry]], findings: Findings) -> Iterator[Item]:
    for file, task in tasks:
        where = f"{folder.path(file)}: task {brief(task.get('id'))}"
        with findings.collect("images that cannot be used"):
            names = _names(task["data"], where)
            done = [one for one in dicts(task["annotations"]) if not one.get("was_cancelled")]
            if not done:
                findings.warn("tasks without annotations skipped", where)
                continue
            if len(done) > 1:
                findings.warn("tasks with several annotations, the latest taken", where)
            latest = max(done, key=lambda one: str(one.get("created_at")))
            item = Item(names, where, Path(file).parent.as_posix(), fractions=True)
            regions = [one for one in dicts(latest.get("result")) if isinstance(one.get("value"), dict)]
            labelled = {str(region.get("id")) for region in regions if _labels(region["value"])}
            for region in regions:
                if not _labels(region["value"]) and str(region.get("id")) in labelled:
                    continue  # the shape alone: the region is there once more with its labels
                with findings.collect("boxes that cannot be read"):
                    item.things += _things(region, where, findings)
            yield item


def _names(data: Any, where: str) -> list[str]:
    """What a task's image may be called: as it is, and without the prefix that uploading adds."""
    texts = [text for text in data.values() if isinstance(text, str)] if isinstance(data, dict) else []
    paths = [text if "?d=" in text else text.partition("?")[0] for text in texts]
    found = [path for path in paths if path.lower().endswith(IMAGE_SUFFIXES)]
    if len(found) != 1:
        raise DoubleheadError(f"{where} must name one image in `data`, not {len(found)}")
    return [found[0], re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", found[0])]


def _things(region: Entry, where: str, findings: Findings) -> list[Thing]:
    """The objects of a region, one for each of its labels."""
    value = region["value"]
    if not ("points" in value or "height" in value or "radiusX" in value):
        kind = next((key for key in value if key.endswith("labels")), None) or brief(region.get("type")).strip("'")
        ignore(kind, where, findings)
        return []
    labels = _labels(value)
    if not labels:
        raise DoubleheadError(f"{where} has a region without a label: {brief(value)}")
    box, reduced = _box(region, where)
    return [Thing(label, box, reduced=reduced) for label in labels]


def _box(region: Entry, where: str) -> tuple[Box, str]:
    """A region's box in fractions of the image, and the kind of finding if it was made from something else."""
    value = region["value"]
    if region.get("image_rotation"):
        raise DoubleheadError(f"{where}: its image was rotated in Label Studio; export the dataset as COCO")
    if "points" in value:
        points = pairs(value["points"], f"{where}: `points` of a region")
        return around([(x / 100, y / 100) for x, y in points], f"{where}: a region"), POLYGONS

    def share(key: str) -> float:
        return number(value.get(key), f"{where}: `{key}` of a region") / 100

    angle = math.radians(number(value.get("rotation") or 0, f"{where}: `rotation` of a region"))
    size = size_of(region.get("original_width"), region.get("original_height")) if angle else (1, 1)
    if not size:
        raise DoubleheadError(f"{where}: a rotated region needs `original_width` and `original_height`")
    width, height = size  # turning needs pixels, as fractions are not square
    x, y = share("x") * width, share("y") * height
    if "radiusX" in value:
        w, h = 2 * share("radiusX") * width, 2 * share("radiusY") * height
    else:  # x and y are the corner about which it is turned
        w, h = share("width") * width, share("height") * height
        x += (w * math.cos(angle) - h * math.sin(angle)) / 2
        y += (w * math.sin(angle) + h * math.cos(angle)) / 2
    x1, y1, x2, y2 = around_rotated((x - w / 2, y - h / 2, x + w / 2, y + h / 2), angle)
    return (x1 / width, y1 / height, x2 / width, y2 / height), ROTATED if angle else ""


def _labels(value: Entry) -> list[str]:
    lists = [labels for key, labels in value.items() if key.endswith("labels") and isinstance(labels, list)]
    return [label for labels in lists for label in labels if isinstance(label, str) and label.strip()]
