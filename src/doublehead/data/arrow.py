"""Parquet and Arrow files whose cells hold images, read group by group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, require


@dataclass(frozen=True)
class ImageCell:
    """An encoded image in a cell of the column `image`."""

    path: Path
    group: int
    row: int  # in its group

    def read(self) -> bytes:
        """Return the image, still encoded.

        Raises:
            DoubleheadError: the file has changed or the cell is empty.
        """
        with told(self.path):
            content = _bytes(images(self.path, self.group)[self.row].as_py())
        if content is None:
            raise DoubleheadError(f"{self.path}: row {self.row} of group {self.group} holds no image")
        return content


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into one sentence."""
    try:
        yield
    except DoubleheadError:
        raise
    except Exception as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DoubleheadError(
            f"{path}: cannot be read as {path.suffix.lower()} ({cause})", "annotation files unreadable"
        ) from error


def schema(path: Path) -> Any:
    """Names and types of the columns, as pyarrow's Schema."""
    with told(path):
        return _file(path).schema


def groups(path: Path) -> int:
    """The number of groups of rows."""
    return _file(path).groups


def rows(path: Path, group: int, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of a group as plain values."""
    rows: list[dict[str, Any]] = _file(path).read(group, columns).to_pylist()
    return rows


def images(path: Path, group: int) -> Any:
    """The column `image` of a group."""
    return _images(path, group, _stamp(path))


@lru_cache(maxsize=2)
def _images(path: Path, group: int, stamp: tuple[int, int]) -> Any:
    return _file(path).read(group, ["image"]).column("image")


def _stamp(path: Path) -> tuple[int, int]:
    """What changes with the file's content: a mapped file must never be used after that."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _bytes(cell: Any) -> bytes | None:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    return content if isinstance(content, bytes) else None


class _Parquet:
    def __init__(self, path: Path) -> None:
        parquet: Any = require("pyarrow.parquet", "bulk")
        self._inside = parquet.ParquetFile(path)
        self.schema = self._inside.schema_arrow
        self.groups: int = self._inside.num_row_groups

    def read(self, group: int, columns: list[str]) -> Any:
        return self._inside.read_row_group(group, columns=columns)


class _Arrow:
    """A stream of record batches, as `datasets` writes it, or Arrow's file format. Mapped into memory, not read."""

    groups = 1

    def __init__(self, path: Path) -> None:
        arrow: Any = require("pyarrow", "bulk")
        source = arrow.memory_map(str(path))
        try:
            self._table = arrow.ipc.open_stream(source).read_all()
        except arrow.ArrowInvalid:
            self._table = arrow.ipc.open_file(source).read_all()
        self._table.validate(full=True)  # damaged offsets would be followed out of the file
        self.schema = self._table.schema

    def read(self, group: int, columns: list[str]) -> Any:
        return self._table.select(columns)


def _file(path: Path) -> _Parquet | _Arrow:
    return _Parquet(path) if path.suffix.lower() == ".parquet" else _mapped(path, _stamp(path))


@lru_cache(maxsize=8)
def _mapped(path: Path, stamp: tuple[int, int]) -> _Arrow:
    return _Arrow(path)
