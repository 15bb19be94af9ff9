"""Detections of one part as a Parquet file, with one row per image, including unreadable ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import doublehead
from doublehead.common.categories import Categories
from doublehead.common.errors import printable, require
from doublehead.common.files import whole
from doublehead.deploy.bulk.detecting import ImageResult
from doublehead.deploy.bulk.sources import open_parquet
from doublehead.inference.detections import Detections

CATEGORIES, BAD, VERSION = b"categories", b"bad", b"doublehead"  # keys of the file's own notes


def write_part(path: Path, found: Iterable[ImageResult], categories: Categories) -> None:
    """Write the file of a part atomically.

    Columns: name, width, height; boxes (N, 4) xyxy in pixels, scores (N,), category_ids (N,), class_names (N,); fault:
    why the image could not be read, else null.

    Raises:
        DoubleheadError: pyarrow is not installed.
        Fault: the file cannot be written.
    """
    pa, parquet = require("pyarrow", "bulk"), require("pyarrow.parquet", "bulk")
    rows = [_row(one) for one in found]
    notes = {
        CATEGORIES: categories.to_json(),
        BAD: str(sum("fault" in row for row in rows)),
        VERSION: doublehead.__version__,
    }
    with whole(path) as temporary:
        parquet.write_table(pa.Table.from_pylist(rows, _schema(pa).with_metadata(notes)), temporary)


def read_part(path: Path) -> Iterator[ImageResult]:
    """Read a file written by `write_part`."""
    categories = read_categories(path)
    with open_parquet(str(path)) as file:
        rows = (row for batch in file.iter_batches(256) for row in batch.to_pylist())
        for index, row in enumerate(rows):
            if row["fault"] is None:
                yield ImageResult(index, row["name"], row["width"], row["height"], _detections(row, categories))
            else:
                yield ImageResult(index, row["name"], fault=row["fault"])


def read_categories(path: Path) -> Categories:
    """Read the classes of the model that produced a part."""
    with open_parquet(str(path)) as file:
        return Categories.from_json(file.schema_arrow.metadata[CATEGORIES])


def count_bad(path: Path) -> int:
    """Number of unreadable images in a part, from the file's metadata."""
    with open_parquet(str(path)) as file:
        return int(file.schema_arrow.metadata[BAD])


def _schema(pa: Any) -> Any:
    number, text = pa.float32(), pa.string()
    return pa.schema(
        [
            pa.field("name", text, nullable=False),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("boxes", pa.list_(pa.list_(number))),
            ("scores", pa.list_(number)),
            ("category_ids", pa.list_(pa.int64())),
            ("class_names", pa.list_(text)),
            ("fault", text),
        ]
    )


def _row(found: ImageResult) -> dict[str, Any]:
    name = printable(found.name)
    if (d := found.detections) is None:
        return {"name": name, "fault": found.fault}
    return {
        "name": name,
        "width": found.width,
        "height": found.height,
        "boxes": d.boxes.tolist(),
        "scores": d.scores,
        "category_ids": np.asarray(d.category_ids)[d.labels - 1].tolist(),
        "class_names": d.class_names,
    }


def _detections(row: dict[str, Any], categories: Categories) -> Detections:
    labels = [categories.ids.index(number) + 1 for number in row["category_ids"]]
    boxes, scores = np.array(row["boxes"], np.float32), np.array(row["scores"], np.float32)
    return Detections(boxes, scores, np.array(labels), categories.names, categories.ids)
