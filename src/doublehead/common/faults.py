"""Failures of the machine, converted to one-sentence errors."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from doublehead.common.errors import Fault
from doublehead.config import TrainConfig

# What torch says, in RuntimeErrors without a type of their own.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_NO_DEVICE = ("CUDA error", "HIP error", "device-side assert")
_MORE_FILES = "raise the limit, such as `ulimit -n 4096`, or lower data.workers"
_NO_FILE = ("Too many open files", "received 0 items of ancdata")
_NO_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")

SECOND_IMPORT = 77
"""Exit code of a loader process that was about to run the user's script a second time."""


def refuse_second_import() -> None:
    """End a loader process that, while it starts, runs the user's script in place of loading images.

    Under the start methods spawn and forkserver a new process imports the script. One that calls `train` without asking
    for `__name__ == "__main__"` would begin another run there.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        os._exit(SECOND_IMPORT)  # a SystemExit would lose its code under forkserver


def allow_open_files(count: int) -> None:
    """Let this process open so many more files than it has open, within what the system lets a user allow.

    Beyond its limit, loader processes hang or end in tracebacks of their own.

    Raises:
        Fault: the system's limit is lower.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + (len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 32)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise Fault(f"loading images needs about {needed} open files, and the limit is {hard}: {_MORE_FILES}")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def told(memory: str = "use a machine with more") -> Iterator[None]:
    """Context that converts torch's errors to one sentence: out of memory or files, or a lost process.

    Args:
        memory: advice for running out of memory.

    Raises:
        Fault: in place of torch's errors.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        sentence = _sentence(error, memory)
        if sentence is None:
            raise
        raise Fault(sentence) from error


def _no_memory(error: BaseException) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in _NO_MEMORY)


def less_memory(settings: TrainConfig, world: int) -> str:
    """What to do where a run of so many processes runs out of memory."""
    share = settings.batch_size // world
    at_once = share // settings.accumulate
    if at_once <= 1:
        return (
            "even one image at a time is too much: start a new run with a smaller model.input.short_side and long_side"
        )
    parts = next(parts for parts in range(settings.accumulate + 1, share + 1) if share % parts == 0)
    return (
        f"set train.accumulate to {parts} in the run's config.yaml, for {share // parts} images at a time instead of "
        f"{at_once}, or start a new run with train.batch_size={settings.batch_size // 2}"
    )


def loses_device(error: BaseException) -> bool:
    """Whether an error leaves the device unusable for the rest of the process, as a device-side assert does."""
    text = str(error)
    return any(words in text for words in _NO_DEVICE) and not any(words in text for words in _NO_MEMORY)


def _sentence(error: Exception, memory: str) -> str | None:
    text = str(error) or type(error).__name__
    cause = re.sub(r"^\[[^]]*\][ .]*", "", text.strip().splitlines()[0])  # without the line of torch's code
    if _no_memory(error):
        return f"out of memory ({cause}): {memory}"
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or any(words in text for words in _NO_FILE):
        return f"too many open files ({cause.split('. ')[0]}): {_MORE_FILES}"
    if "DataLoader worker" in text:
        return (
            f"a process that loads images ended ({cause}), often because memory ran out: lower data.workers, or set "
            "it to 0 to see its own error"
        )
    if isinstance(error, dist.DistError) or any(words in text for words in _NO_PEER):
        cause = cause.split(". ")[0]
        return (
            f"lost another process of this run ({cause}): it reports its own error, unless it was killed, or its "
            "machine or the network is down"
        )
    return None
