"""Files that are whole or absent, whatever ends the process that writes them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from doublehead.errors import Fault

_WRITING = ".writing"


@contextmanager
def whole(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Give a temporary name to write to; afterwards the file goes to the disk and takes its own name in one step.

    Args:
        path: the file that is to be, replaced if there is one.
        keep: a name under which the file that stood at `path` before stays.

    Raises:
        Fault: the disk is full, or the folder is gone or may not be written to; the file from before still stands.
    """
    temporary = path.parent / _WRITING / path.name  # a folder, since safetensors has temporary files of its own
    with writing(path):
        try:
            temporary.parent.mkdir(exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors lets nobody but the owner read its files
            _to_disk(temporary, os.O_RDWR)
            if keep and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
            if os.name == "posix":  # elsewhere a folder cannot be opened
                _to_disk(path.parent, os.O_RDONLY)
        finally:
            remove_unfinished(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell a failure to write in one sentence.

    Raises:
        Fault: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise Fault(
            f"{path}: cannot be written ({error.strerror or error}): make room on the disk, or see to it that the "
            "folder is there and may be written to"
        ) from error


def remove_unfinished(folder: Path) -> None:
    """Remove what `whole` was writing there when its process was killed."""
    shutil.rmtree(folder / _WRITING, ignore_errors=True)


def _to_disk(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
