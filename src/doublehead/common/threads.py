"""Work on many things at once, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Seen = TypeVar("Seen")


def in_threads(
    look: Callable[[Item], Seen], items: Sequence[Item], progress: Callable[[], object] | None = None
) -> Iterator[Seen]:
    """What `look` sees in each item, in their order, by as many threads as there are cores: decoders release the GIL.

    `progress` is called once per item, in this thread.
    """
    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        for seen in executor.map(look, items):
            yield seen
            if progress:
                progress()
    finally:
        executor.shutdown(cancel_futures=True)  # or Ctrl-C would wait for all the rest
