"""The manifests of SageMaker Ground Truth and Rekognition Custom Labels to records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import Item, NotMine, Splits, Thing, corner_and_size, gather, image_in, json_lines, size_of
from doublehead.data.records import Findings
from doublehead.data.text import dicts

Entry = dict[str, Any]
Row = tuple[str, int, Entry]  # file, line, what it holds

_IMAGE = "source-ref"
_BOX = ("left", "top", "width", "height")


def find_ground_truth(folder: Folder) -> Splits | NotMine | None:
    """Splits of JSON lines with `source-ref`: by the files' folders or names, else one."""
    rows = json_lines(folder, (".manifest", ".jsonl", ".json"), [f'"{_IMAGE}"', "-metadata"])
    return gather(folder, ((split_of_file(row[0]), row) for row in rows), _items)


def _items(folder: Folder, rows: list[Row], findings: Findings) -> Iterator[Item]:
    for file, line, row in rows:
        where = f"{folder.path(file)}: line {line}"
        with findings.collect("images that cannot be used"):
            name = image_in(row, _IMAGE, where)
            key = _job(row)
            if key is None:
                findings.warn("images without annotations skipped", where)
                continue
            names = row[f"{key}-metadata"].get("class-map")
            size = next(
                (size_of(one.get("width"), one.get("height")) for one in dicts(row[key].get("image_size"))), None
            )
            item = Item([name], where, Path(file).parent.as_posix(), size)
            for annotation in dicts(row[key]["annotations"]):
                with findings.collect("boxes that cannot be read"):
                    item.things.append(_thing(annotation, names, where))
            yield item


def _job(row: Entry) -> str | None:
    """The labelling job whose boxes count: the last one, which may have corrected an earlier one's; None: no job."""
    jobs = [
        key
        for key, value in row.items()
        if isinstance(value, dict) and "annotations" in value and isinstance(row.get(f"{key}-metadata"), dict)
    ]
    return jobs[-1] if jobs else None


def _thing(annotation: Entry, names: Any, where: str) -> Thing:
    number = annotation.get("class_id")
    label = names.get(str(number)) if isinstance(names, dict) else None
    if not isinstance(label, str):
        raise DoubleheadError(f"{where}: `class_id` {brief(number)} is not in the `class-map`", "unknown classes")
    return Thing(label, corner_and_size(annotation, _BOX, f"{where}: a box"))
