"""Open Images' CSV, as Google and FiftyOne write it, to records."""

from __future__ import annotations

import csv
import io

from doublehead.common.errors import DoubleheadError
from doublehead.data.folder import Folder
from doublehead.data.objects import NotMine, Splits
from doublehead.data.tables import Table, read_table, table_splits
from doublehead.data.text import read_text

_HEAD = ("ImageID", "LabelName", "XMin")


def find_open_images(folder: Folder) -> Splits | NotMine | None:
    """Splits of `*-annotations-bbox.csv` or FiftyOne's `labels/detections.csv`, with classes in words where a CSV
    beside them has these. Images that have not been downloaded are left out, with their boxes. `IsGroupOf` means a
    crowd.
    """
    tables, names = [], {}
    for file in folder.suffixed(".csv"):
        first = read_text(folder.path(file), "CSV").lstrip().split("\n", 1)[0]
        if all(column in first for column in _HEAD):
            found = read_table(folder, file)
            if isinstance(found, Table):
                found.fractions = True
                tables.append(found)
        elif first.startswith(("/m/", "/g/", "/t/", "LabelName,DisplayName")):
            names.update(_names(folder, file))
    return table_splits(folder, tables, names, folder.has_image) if tables else None


def _names(folder: Folder, file: str) -> dict[str, str]:
    text = read_text(folder.path(file), "CSV")
    try:
        return {row[0]: row[1] for row in csv.reader(io.StringIO(text, newline="")) if len(row) == 2}
    except csv.Error as error:
        raise DoubleheadError(f"{folder.path(file)}: cannot be read as CSV ({error})") from error
