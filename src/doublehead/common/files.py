"""Atomic writing of files: they are complete or absent, even if the process is killed."""

from __future__ import annotations

import hashlib
import os
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
_held: set[int] = set()  # descriptors of folders


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
def held(folder: Path) -> Iterator[None]:
    """Context that locks a folder against other processes. The lock ends with this process at the latest.

    It has no effect where the system or the file system cannot lock folders.

    Raises:
        DoubleheadError: another process holds the folder.
        Fault: the folder is missing.
    """
    if fcntl is None:
        yield
        return
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY)  # an open file would keep the disk from being made read-only
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DoubleheadError(
                f"{folder}: another process is writing there; wait until it ends, or give another folder"
            ) from error
        except OSError:
            pass
        yield
    finally:
        if descriptor in _held:  # not in a forked process
            _held.remove(descriptor)
            os.close(descriptor)


def _let_go() -> None:
    """Close inherited folders in a forked process, which would otherwise keep the parent's locks."""
    while _held:
        os.close(_held.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)


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
