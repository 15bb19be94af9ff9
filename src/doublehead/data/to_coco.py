"""Conversion of datasets to COCO's official layout."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.data.records import Record, Split


def write_coco(data: str | Path, output: str | Path, link: bool = False, progress: bool = False) -> list[Split]:
    """Write the distinct splits as `annotations/instances_<split>.json` and `<split>/`, into a new folder.

    Class ids (YOLO's start at 0) and boxes are unchanged, so a model trained on either version can be evaluated on the
    other. Difficult objects of VOC become crowds. Annotations that the reader ignores are omitted.

    Args:
        data: dataset folder or YAML; not modified.
        output: output folder; created if missing, and must be empty.
        link: whether to create symbolic links to the images instead of copies.
        progress: whether to show a progress bar.

    Returns:
        The splits that were written.

    Raises:
        DoubleheadError: the dataset has a fault, an image is missing, or the folder is not empty.
    """
    dataset = open_dataset(data)
    splits = [dataset.read(name) for name in dataset.distinct]
    write_splits(splits, Path(output), link, progress)
    return splits


def write_splits(splits: list[Split], output: Path, link: bool = False, progress: bool = False) -> None:
    """Write splits as `write_coco` does.

    Raises:
        DoubleheadError: an image is missing, or the folder is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DoubleheadError(f"{output}: is not empty; name a new folder")
    (output / "annotations").mkdir(parents=True, exist_ok=True)
    with Console(progress).progress("writing images", sum(len(split.records) for split in splits)) as advance:
        for split in splits:
            content = _content(split)
            for record, entry in zip(split.records, content["images"], strict=True):
                _place(record, output / split.name / entry["file_name"], link)
                advance()
            (output / "annotations" / f"instances_{split.name}.json").write_text(json.dumps(content), encoding="utf-8")


def _content(split: Split) -> dict[str, Any]:
    folder = os.path.commonpath([record.path.parent.absolute() for record in split.records]) if split.records else ""
    annotations: list[dict[str, Any]] = []
    for record in split.records:
        annotations += _annotations(record, split, len(annotations) + 1)
    return {
        "categories": [{"id": number, "name": name} for name, number in split.categories.pairs],
        "images": [
            {
                "id": record.image_id,
                "file_name": record.path.absolute().relative_to(folder).as_posix(),
                "width": record.width,
                "height": record.height,
                **({} if record.weight == 1 else {"weight": record.weight}),
            }
            for record in split.records
        ],
        "annotations": annotations,
    }


def _annotations(record: Record, split: Split, first: int) -> list[dict[str, Any]]:
    found = []
    rows = zip(record.boxes.tolist(), record.labels.tolist(), record.crowd.tolist(), record.areas.tolist(), strict=True)
    for number, ((x1, y1, x2, y2), label, crowd, area) in enumerate(rows, start=first):
        found.append(
            {
                "id": number,
                "image_id": record.image_id,
                "category_id": split.categories.ids[label - 1],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": int(crowd),
            }
        )
    return found


def _place(record: Record, copy: Path, link: bool) -> None:
    image, content = record.path, record.encoded()
    copy.parent.mkdir(parents=True, exist_ok=True)
    if copy.exists():  # a file that is listed as two images
        return
    try:
        if content is not None:
            copy.write_bytes(content)
        elif link:
            copy.symlink_to(image.resolve(strict=True))
        else:
            shutil.copyfile(image, copy)
    except FileNotFoundError as error:
        raise DoubleheadError(f"{image}: there is no such image file") from error
