"""CSV with a row per box to records: the column orders of TensorFlow, RetinaNet, Kaggle and AutoML."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, canonical, split_in_name, split_of_folder
from doublehead.data.objects import Item, NotMine, Parse, Splits, Thing, number, size_of, splits_by_name
from doublehead.data.records import Box, Findings
from doublehead.data.text import is_number, is_set, read_text

# What a column may be called, in lower case and without anything but letters and digits.
COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("filename", "imageid", "image", "imagename", "imagepath", "imgpath", "path", "filepath", "img", "file"),
    "class": ("class", "label", "classname", "labelname", "category", "categoryname", "name", "classid", "categoryid"),
    "x1": ("xmin", "x1", "left", "xtl", "bboxxmin"),
    "y1": ("ymin", "y1", "top", "ytl", "bboxymin"),
    "x2": ("xmax", "x2", "right", "xbr", "bboxxmax"),
    "y2": ("ymax", "y2", "bottom", "ybr", "bboxymax"),
    "x": ("x", "bboxx", "boxx"),
    "y": ("y", "bboxy", "boxy"),
    "cx": ("xcenter", "centerx", "cx"),
    "cy": ("ycenter", "centery", "cy"),
    "w": ("w", "bboxw", "bboxwidth", "boxwidth", "width"),
    "h": ("h", "bboxh", "bboxheight", "boxheight", "height"),
    "bbox": ("bbox", "box", "boundingbox"),
    "width": ("imagewidth", "imgwidth", "width"),
    "height": ("imageheight", "imgheight", "height"),
    "set": ("set", "split", "subset", "partition", "mluse"),
    "crowd": ("isgroupof", "iscrowd"),
}
Columns = dict[str, int]  # a key of COLUMNS -> place in the row


@dataclass(frozen=True)
class Form:
    """How a row tells a box."""

    needs: tuple[str, ...]  # columns, besides that of the image
    box: Callable[[list[float]], Box]  # their numbers -> xyxy


FORMS = (
    Form(("x1", "y1", "x2", "y2"), lambda v: (v[0], v[1], v[2], v[3])),
    Form(("bbox",), lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])),
    Form(("x", "y", "w", "h"), lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])),
    Form(("cx", "cy", "w", "h"), lambda v: (v[0] - v[2] / 2, v[1] - v[3] / 2, v[0] + v[2] / 2, v[1] + v[3] / 2)),
)

_RETINANET: Columns = {"image": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "class": 5}
_AUTOML: Columns = {"set": 0, "image": 1, "class": 2, "x1": 3, "y1": 4, "x2": 7, "y2": 8}
_ONLY = "object"  # the class of a table that has none


@dataclass
class Table:
    """One CSV file whose columns are understood."""

    file: str  # in the dataset's folder
    path: Path
    form: Form
    columns: Columns
    rows: list[tuple[int, list[str]]] = field(default_factory=list)  # with their line numbers
    fractions: bool = False  # boxes are fractions of the image's size

    def cell(self, row: Sequence[str], key: str) -> str:
        """The text in a column; "" where the row or the table lacks it."""
        place = self.columns.get(key, len(row))
        return row[place].strip() if place < len(row) else ""

    def split(self, row: Sequence[str]) -> str:
        """The split of a row: by its own column, else by the file's name or folder."""
        named = self.cell(row, "set")
        return canonical(named) if named else split_in_name(Path(self.file).stem) or split_of_folder(self.file) or "all"


def find_csv(folder: Folder) -> Splits | NotMine | None:
    """Splits of CSV files: by a column such as `set`, by the names of the files or their folders, else one."""
    tables, unknown = [], None
    for file in folder.suffixed(".csv", ".tsv"):
        found = read_table(folder, file)
        if isinstance(found, Table):
            tables.append(found)
        else:
            unknown = unknown or found
    return table_splits(folder, tables) if tables else unknown


def table_splits(
    folder: Folder, tables: list[Table], called: dict[str, str] | None = None, here: Callable[[str], bool] | None = None
) -> Splits:
    """Splits of tables.

    Args:
        folder: the dataset.
        tables: its tables.
        called: class, as written in a row -> its name.
        here: whether an image is there; others are left out and counted. None: others are faults.
    """
    rows: dict[str, list[tuple[Table, int, list[str]]]] = {}
    for table in tables:
        for line, row in table.rows:
            rows.setdefault(table.split(row), []).append((table, line, row))
    sources: dict[str, Parse] = {
        split: partial(_items, found=found, called=called or {}, here=here) for split, found in rows.items()
    }
    return splits_by_name(folder, sources)


def read_table(folder: Folder, file: str) -> Table | NotMine | None:
    """A CSV file as a table of boxes; NotMine: it has images and no boxes; None: it is something else.

    Raises:
        DoubleheadError: the file is no text, or no CSV.
    """
    path = folder.path(file)
    text = read_text(path, "CSV")
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=first.count)
    try:
        rows = [
            row for row in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1) if any(row[1])
        ]
    except csv.Error as error:
        raise DoubleheadError(f"{path}: cannot be read as CSV ({error})", "annotation files unreadable") from error
    if not rows:
        return None
    header = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in rows[0][1]]
    columns = _columns(header)
    form = next((form for form in FORMS if columns.keys() >= set(form.needs)), None)
    if "image" in columns and form:
        if form.needs[-1] == "h" and columns["w"] == columns.get("width"):
            del columns["width"], columns["height"]  # they are the box's
        table = Table(file, path, form, columns, rows[1:])
    elif _is_retinanet(rows[0][1]):
        table = Table(file, path, FORMS[0], _RETINANET, rows)
    elif _is_automl(rows[0][1]):
        table = Table(file, path, FORMS[0], _AUTOML, rows)
    elif "image" in columns and "class" in columns:
        return NotMine(f"{file} with the columns {', '.join(rows[0][1])[:200]}", "xmin, ymin, xmax, ymax and class")
    else:
        return None
    table.fractions = _are_fractions(table)
    return table


def _columns(header: list[str]) -> Columns:
    found = {key: [name for name in names if name in header] for key, names in COLUMNS.items()}
    return {key: header.index(names[0]) for key, names in found.items() if names}


def _is_retinanet(row: list[str]) -> bool:
    return len(row) == 6 and (all(map(is_number, row[1:5])) or not any(row[1:]))


def _is_automl(row: list[str]) -> bool:
    return len(row) in (9, 11) and all(is_number(row[place]) for place in (3, 4, 7, 8))


def _are_fractions(table: Table) -> bool:
    """Whether all edges are from 0 to 1, and not all of them 0 or 1."""
    edges = [
        float(text) for _, row in table.rows for key in table.form.needs for text in _numbers_in(table.cell(row, key))
    ]
    return bool(edges) and all(-0.01 <= edge <= 1.01 for edge in edges) and any(0 < edge < 1 for edge in edges)


def _numbers_in(text: str) -> list[str]:
    """The numbers in a cell such as `12.5` or `[1, 2, 3, 4]`."""
    return [part for part in re.split(r"[\s,;\[\]()]+", text) if part and is_number(part)]


def _items(
    findings: Findings,
    found: Iterable[tuple[Table, int, list[str]]],
    called: dict[str, str],
    here: Callable[[str], bool] | None,
) -> Iterator[Item]:
    items: dict[tuple[str, str], Item] = {}
    for table, line, row in found:
        where = f"{table.path}: line {line}"
        with findings.collect("rows that cannot be read"):
            name = table.cell(row, "image")
            if not name:
                raise DoubleheadError(f"{where} names no image")
            if here and not here(name):
                findings.warn("boxes of images that are not in the folder ignored", f"{name} in {table.file}")
                continue
            size = size_of(table.cell(row, "width"), table.cell(row, "height"))
            beside = Path(table.file).parent.as_posix()
            item = items.setdefault(
                (table.file, name), Item([name], where, beside, size, fractions=table.fractions)
            )  # fmt: skip
            thing = _thing(table, row, where, called)
            if thing:
                item.things.append(thing)
    yield from items.values()


def _thing(table: Table, row: list[str], where: str, called: dict[str, str]) -> Thing | None:
    """The object of a row; None: the image has none."""
    cells = [table.cell(row, key) for key in table.form.needs]
    category = table.cell(row, "class") if "class" in table.columns else _ONLY
    if not any(cells):
        return None
    if table.form.needs == ("bbox",):
        cells = _bbox(cells[0], where)
    values = [number(cell, f"{where}: its box") for cell in cells]
    if not category:
        raise DoubleheadError(f"{where} has a box without a class")
    return Thing(called.get(category, category), table.form.box(values), is_set(table.cell(row, "crowd")))


def _bbox(text: str, where: str) -> list[str]:
    """Four numbers in one cell."""
    try:
        values = json.loads(text)
        found = [str(value) for value in values] if isinstance(values, list) else []
    except (ValueError, RecursionError):
        found = _numbers_in(text)
    if len(found) != 4:
        raise DoubleheadError(f"{where}: `bbox` must be four numbers, x, y, width, height, not {brief(text)}")
    return found
