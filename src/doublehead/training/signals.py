"""Ctrl-C and SIGTERM: a run saves its state before it stops."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop, and is saved."""


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag for the loop. A second Ctrl-C stops immediately, without saving."""
    asked: float | None = None

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        now = time.monotonic()
        asked = now if asked is None else asked
        # torchrun repeats a Ctrl-C to processes that have it from the terminal already: that is no second one
        if number == signal.SIGINT and now - asked > 1:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: there, no signal arrives
        before = {}
    try:
        yield lambda: asked is not None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
