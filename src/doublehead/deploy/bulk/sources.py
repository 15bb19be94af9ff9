"""Sources of images: files, folders, globs, WebDataset tars and Parquet, as parts in a fixed order."""

from __future__ import annotations

import hashlib
import os
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from glob import glob
from itertools import accumulate, count
from pathlib import Path
from typing import Any, Protocol

from doublehead.common.errors import DoubleheadError, Fault, require
from doublehead.data.images import IMAGE_SUFFIXES

ARCHIVES = (".tar", ".parquet")
ROWS = 16  # of a Parquet file that are held at a time


@dataclass(frozen=True)
class Item:
    """An image that has not been read yet."""

    name: str  # a file's path; archive/member; table.parquet/path, or where it has none table.parquet/row
    read: Callable[[], bytes]  # OSError: it cannot be


class Part(Protocol):
    """Images that are processed together. Parts can be pickled, hold no pixels, and can be read repeatedly."""

    @property
    def key(self) -> str:
        """Identifies the part."""

    def __len__(self) -> int: ...

    def items(self) -> Iterator[Item]:
        """Yield the images, always in the same order."""


@dataclass(frozen=True)
class Files:
    """Image files."""

    paths: tuple[str, ...]

    @property
    def key(self) -> str:
        """Identifies the part by its paths."""
        return "\n".join(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def items(self) -> Iterator[Item]:
        """One for each file."""
        return (Item(path, Path(path).read_bytes) for path in self.paths)


@dataclass(frozen=True)
class Members:
    """Files in an uncompressed tar, by offset."""

    archive: str
    members: tuple[tuple[str, int, int], ...]  # name, first byte, bytes

    @property
    def key(self) -> str:
        """Identifies the part by the archive and the offsets of its files."""
        return "\n".join([self.archive, *(f"{name} {first} {size}" for name, first, size in self.members)])

    def __len__(self) -> int:
        return len(self.members)

    def items(self) -> Iterator[Item]:
        """One for each member."""
        for name, first, size in self.members:
            yield Item(f"{self.archive}/{name}", partial(self._read, first, size))

    def _read(self, first: int, size: int) -> bytes:
        with open(self.archive, "rb") as file:
            file.seek(first)
            return file.read(size)


@dataclass(frozen=True)
class Rows:
    """Rows of a Parquet file with images as bytes, or as bytes and path as in Hugging Face's datasets."""

    table: str
    column: str
    first: int
    rows: int

    @property
    def key(self) -> str:
        """Identifies the part by file, column and rows."""
        return f"{self.table} {self.column} {self.first} {self.rows}"

    def __len__(self) -> int:
        return self.rows

    def items(self) -> Iterator[Item]:
        """One for each row, with its bytes."""
        rows = self._rows()
        for number in range(self.first, self.first + self.rows):
            value = next(rows, None)
            value = value if isinstance(value, dict) else {"bytes": value}
            name = f"{self.table}/{value.get('path') or number}"
            yield Item(name, partial(_bytes, value.get("bytes")))

    def _rows(self) -> Iterator[Any]:
        """Yield the values of the column, starting with the first row of the part."""
        with open_parquet(self.table) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = list(accumulate(rows))
            group = bisect_right(ends, self.first)  # the one that holds the first row wanted
            skip = self.first - (ends[group] - rows[group])
            groups = list(range(group, len(rows)))
            for batch in file.iter_batches(ROWS, row_groups=groups, columns=[self.column]):
                values = batch.column(0)[skip:]
                skip = max(0, skip - len(batch))
                yield from (value.as_py() for value in values)


def _bytes(data: bytes | None) -> bytes:
    if data is None:
        raise OSError("its row holds no bytes")
    return data


def find_files(sources: Iterable[str]) -> Iterator[Path]:
    """Find the files of paths, folders (searched recursively for images) and globs, each once, in order.

    Raises:
        DoubleheadError: a source has no files.
    """
    sources, seen = list(sources), set()
    for source in sources:
        path, none = Path(os.path.expanduser(source)), True
        for file in _named(path):
            none = False
            if len(sources) == 1:  # names each once, and what millions of names take is spared
                yield file
            elif file not in seen:
                seen.add(file)
                yield file
        if none:
            raise DoubleheadError(
                f"{source}: no image found there; give files, folders or globs such as 'photos/*.jpg', 'shards/*.tar' "
                "or 'data/*.parquet'"
            )


def parts(sources: Iterable[str], size: int, column: str | None = None) -> Iterator[Part]:
    """Divide the images of the sources into parts. A part never spans two archives.

    Args:
        sources: see `find_files`.
        size: maximum images per part.
        column: column of Parquet files with the images; None: the only one that qualifies.

    Raises:
        DoubleheadError: a source has no images, or an archive is damaged.
    """
    waiting: list[str] = []
    for path in find_files(sources):
        kind = path.suffix.lower()
        if kind not in ARCHIVES:
            waiting.append(str(path))
        if waiting and (kind in ARCHIVES or len(waiting) == size):
            yield Files(tuple(waiting))
            waiting = []
        if kind in ARCHIVES:
            yield from _members(path, size) if kind == ".tar" else _rows(path, size, column)
    if waiting:
        yield Files(tuple(waiting))


@dataclass(frozen=True)
class Listing:
    """Summary of all images of the sources: their number and digests."""

    sources: tuple[str, ...]
    size: int
    column: str | None
    sizes: tuple[int, ...]  # of the parts, in images
    digests: tuple[bytes, ...]  # of the parts, by which a change is seen

    @classmethod
    def of(cls, sources: Iterable[str], size: int, column: str | None = None) -> Listing:
        """List the sources.

        Raises:
            DoubleheadError: as `parts`.
        """
        sources, sizes, digests = tuple(sources), [], []
        for part in parts(sources, size, column):
            sizes.append(len(part))
            digests.append(_digest(part))
        return cls(sources, size, column, tuple(sizes), tuple(digests))

    @property
    def digest(self) -> str:
        """Identifies these images, their order and their parts."""
        return hashlib.sha256(b"".join(self.digests)).hexdigest()

    def __len__(self) -> int:
        """Number of parts."""
        return len(self.digests)

    def chosen(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Part]]:
        """Yield the selected parts with their numbers from 0. Sources are listed again to save memory.

        Raises:
            Fault: the sources have changed since the first listing.
        """
        numbers, found = count(), parts(self.sources, self.size, self.column)
        for number, part in zip(numbers, found, strict=False):
            if number >= len(self) or _digest(part) != self.digests[number]:
                raise Fault(f"{self.sources[0]}: the images there changed meanwhile: begin anew in another --output")
            if wanted(number):
                yield number, part


def _digest(part: Part) -> bytes:
    return hashlib.sha256(os.fsencode(part.key)).digest()


def _named(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from _within(path)
    elif path.is_file():
        yield path
    else:
        yield from sorted(p for p in map(Path, glob(str(path), recursive=True)) if p.is_file())


def _within(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder, with the names of one folder at a time in memory."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _within(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
            yield path


def _members(archive: Path, size: int) -> Iterator[Part]:
    """Yield the images of a tar by extension. Other files, such as WebDataset annotations, are skipped."""
    found: list[tuple[str, int, int]] = []
    none = True
    try:
        with tarfile.open(archive, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would remember them all
                if member.isreg() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                    none = False
                    found.append((member.name, member.offset_data, member.size))
                if len(found) == size:
                    yield Members(str(archive), tuple(found))
                    found = []
    except tarfile.TarError as error:
        raise DoubleheadError(
            f"{archive}: is damaged, truncated or not an uncompressed tar ({error}); replace or remove it"
        ) from error
    if none:
        raise DoubleheadError(f"{archive}: holds no image; members are recognised by their suffixes, such as .jpg")
    if found:
        yield Members(str(archive), tuple(found))


def _rows(table: Path, size: int, column: str | None) -> Iterator[Part]:
    with open_parquet(str(table)) as file:
        chosen, rows = _column(table, file.schema_arrow, column), file.metadata.num_rows
    if not rows:
        raise DoubleheadError(f"{table}: has no rows; remove it from the sources")
    for first in range(0, rows, size):
        yield Rows(str(table), chosen, first, min(size, rows - first))


def _column(table: Path, schema: Any, said: str | None) -> str:
    """Name of the given column; else `image`, or the only column with bytes."""
    types = require("pyarrow.types", "bulk")

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        return types.is_binary(kind) or types.is_large_binary(kind)

    able = [field.name for field in schema if holds_bytes(field.type)]
    chosen = said or ("image" if "image" in able or not able else able[0])
    if chosen not in able:
        raise DoubleheadError(f"{table}: has no column `{chosen}` of bytes; name the column of images with --column")
    if not said and chosen != "image" and len(able) > 1:
        raise DoubleheadError(
            f"{table}: several columns may hold the images; choose one with --column: {', '.join(able)}"
        )
    return chosen


@contextmanager
def open_parquet(table: str) -> Iterator[Any]:
    """Context with a `pyarrow.parquet.ParquetFile`, for reading in pieces.

    Raises:
        DoubleheadError: the file is damaged or not Parquet, or pyarrow is not installed.
    """
    parquet = require("pyarrow.parquet", "bulk")
    try:
        with parquet.ParquetFile(table, buffer_size=1 << 20, pre_buffer=False) as file:
            yield file
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise DoubleheadError(f"{table}: is damaged or not a Parquet file ({cause}); replace or remove it") from error
