"""Work in threads: on many things at once, or apart from what follows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Seen = TypeVar("Seen")


def apart(call: Callable[..., Seen], *arguments: object) -> Seen:
    """Run a call in a thread of its own and return its result.

    The OpenMP threads that torch starts for the call end with it. Otherwise they and those of the model's thread
    outnumber the cores, and libgomp's threads sleep between operations, which costs a model a third of its speed.
    Ctrl-C does not wait for the call.
    """
    promise: Future[Seen] = Future()

    def run() -> None:
        try:
            promise.set_result(call(*arguments))
        except BaseException as error:  # raised again where the result is awaited
            promise.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    return promise.result()


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
