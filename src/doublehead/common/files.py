"""Atomic writing of files: they are complete or absent, even if the process is killed."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import IO

from doublehead.common.errors import DoubleheadError, Fault

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WRITING = ".writing"
_LOCK = ".lock"


@contextmanager
def whole(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Context with a temporary path; on exit the file is flushed to disk and renamed atomically.

    Processes may write to the same folder, or even the same file, concurrently; the last one wins.

    Args:
        path: output file; replaced if it exists.
        keep: path to move an existing file at `path` to.

    Raises:
        Fault: the disk is full, or the folder is missing or not writable; an existing file is unchanged.
    """
    with writing(path), _own_folder(path.parent) as own:  # a folder: safetensors has temporary files of its own
        temporary = own / path.name
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
    """Remove what `whole` left when its process was killed. What another process is writing stays."""
    for left in (folder / _WRITING).glob("*"):
        with suppress(OSError):  # another process has just removed it
            if not left.is_dir():
                left.unlink()
                continue
            with (left / _LOCK).open("a") as lock:
                if _locked(lock, wait=False):
                    shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):  # others write there
        (folder / _WRITING).rmdir()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Context in which this process alone holds a file; any end of the process releases it.

    Processes that this one starts don't hold it. Threads don't exclude each other, nor do processes where the system or
    the file system has no locks. The file is removed on exit.

    Raises:
        DoubleheadError: another process holds the file.
        Fault: the file cannot be written.
    """
    with ExitStack() as stack:
        with writing(path):
            file = stack.enter_context(_recorded(path))
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def sha256(path: Path) -> str:
    """The hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_name(name: str, taken: set[str]) -> str:
    """The name, or where it is taken name-2, name-3 ...; it is taken from then on."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free)
    return free


@contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `.writing` for one writer, who holds its lock until the folder is removed."""
    with ExitStack() as stack:
        own = None
        while own is None:
            (parent / _WRITING).mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another process has just removed `.writing`, or the unlocked folder
                made = Path(mkdtemp(dir=parent / _WRITING))
                lock = stack.enter_context((made / _LOCK).open("a"))
                _locked(lock, wait=True)
                own = made if made.exists() else None
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)
            with suppress(OSError):  # others write there
                own.parent.rmdir()


def _locked(file: IO[str], wait: bool) -> bool:
    """Lock a file until it is closed, at the latest by the end of the process.

    Returns:
        False where another process holds the lock, or the file system has no locks.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _recorded(path: Path) -> IO[str]:
    """Open a file with a record lock, which unlike that of `_locked` isn't shared with processes forked from this one.

    Raises:
        DoubleheadError: another process has it.
    """
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                with file:
                    file.seek(0)
                    holder = file.read() or "another process"
                raise DoubleheadError(
                    f"{path.parent}: {holder} is writing there; wait for its end, or give another folder"
                ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its last holder has just removed it


def _to_disk(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(name: str) -> Path | None:
    """Return a folder for what can be computed again, one of the user's own unless DOUBLEHEAD_CACHE names another.

    Args:
        name: of what is kept there.

    Returns:
        None where DOUBLEHEAD_CACHE is empty, or where the folder cannot be written to.
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "doublehead")
    chosen = os.environ.get("DOUBLEHEAD_CACHE", str(usual))
    if not chosen:
        return None
    try:
        folder = Path(chosen).expanduser() / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return folder if os.access(folder, os.W_OK) else None
