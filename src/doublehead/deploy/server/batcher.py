"""Batching of images from concurrent requests for the model's thread, and limits on the queue."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from doublehead.common.faults import loses_device
from doublehead.deploy.server.engine import Choice
from doublehead.deploy.server.refusals import Refused
from doublehead.inference.detections import Detections

log = logging.getLogger(__name__)

RunBatch = Callable[[Sequence[Tensor], Sequence[Choice | None]], list[Detections]]


@dataclass
class Job:
    """An image and the future of its detections."""

    image: Tensor  # uint8 (3, H, W)
    choice: Choice | None
    arrived: float = field(default_factory=time.monotonic)
    promise: Future[Detections] = field(default_factory=Future)


class Batcher:
    """Runs the model on batches in its own thread.

    A batch starts when it is full, or when its first image has waited for `wait` seconds.

    Args:
        run: the model.
        size: maximum images per batch.
        wait: maximum seconds to wait for further images.
        seen: called with the size and the seconds of each batch.
    """

    def __init__(self, run: RunBatch, size: int, wait: float, seen: Callable[[int, float], object]) -> None:
        self._run, self._size, self._wait, self._seen = run, size, wait, seen
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()
        self.pace = 0.0  # seconds per image, lately
        self.lost: Refused | None = None  # set once the device is unusable, which only a new process changes

    @property
    def alive(self) -> bool:
        """Whether images are accepted."""
        return self._thread.is_alive()

    def submit(self, image: Tensor, choice: Choice | None) -> Future[Detections]:
        """Submit an image, uint8 (3, H, W). Futures cancelled before their batch starts cost nothing."""
        job = Job(image, choice)
        self._jobs.put(job)
        return job.promise

    def close(self) -> None:
        """Finish all submitted images, then stop."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            job = self._jobs.get()
            batch: list[Job] = []
            while job is not None:
                batch.append(job)
                if len(batch) == self._size:
                    break
                try:
                    job = self._jobs.get(timeout=max(0.0, batch[0].arrived + self._wait - time.monotonic()))
                except queue.Empty:
                    break
            ended = job is None
            self._answer([job for job in batch if job.promise.set_running_or_notify_cancel()])

    def _answer(self, batch: list[Job]) -> None:
        if not batch:
            return
        began = time.monotonic()
        outcome = self._outcome(batch)
        if isinstance(outcome, Exception):
            if len(batch) == 1 or self.lost is not None:
                for job in batch:
                    job.promise.set_exception(outcome)
            else:  # one of them, or the memory that they need together: each for itself
                for job in batch:
                    self._answer([job])
            return
        seconds = time.monotonic() - began
        each = seconds / len(batch)
        self.pace = 0.8 * self.pace + 0.2 * each if self.pace else each
        self._seen(len(batch), seconds)
        for job, result in zip(batch, outcome, strict=True):
            job.promise.set_result(result)

    def _outcome(self, batch: list[Job]) -> list[Detections] | Exception:
        """Detections, or a new error: the original would keep the failed batch in memory during retries."""
        if self.lost is not None:
            return self.lost
        try:
            return self._run([job.image for job in batch], [job.choice for job in batch])
        except Exception as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            if loses_device(error):
                log.critical("the device failed; restart the server", exc_info=error)
                self.lost = Refused(503, "device_lost", f"the device failed ({cause}): restart the server")
                return self.lost
            if len(batch) > 1:
                log.warning("a batch of %d failed (%s); running it image by image", len(batch), cause)
            else:
                log.exception("an image of shape %s could not be answered", tuple(batch[0].image.shape))
            return RuntimeError(cause)


class Room:
    """Counts accepted images that are not answered yet, and rejects those above the limits. Not thread-safe.

    Args:
        images: maximum images.
        pixels: maximum pixels of all images.
        pace: returns the seconds per image, for Retry-After.
    """

    def __init__(self, images: int, pixels: int, pace: Callable[[], float]) -> None:
        self._most_images, self._most_pixels, self._pace = images, pixels, pace
        self.images = 0
        self.pixels = 0

    @property
    def retry_after(self) -> int:
        """Estimated seconds until the queue is processed; at least one."""
        return max(1, math.ceil(self.images * self._pace()))

    @contextmanager
    def place(self) -> Iterator[Admission]:
        """Context that reserves room for a request, initially for one image.

        Raises:
            Refused: the queue is full.
        """
        place = Admission(self)
        try:
            place.grow(images=1)
            yield place
        finally:
            self.images -= place.images
            self.pixels -= place.pixels

    def take(self, images: int, pixels: int) -> None:
        """Reserve room for more images.

        Raises:
            Refused: a limit would be exceeded.
        """
        if self.images + images > self._most_images or self.pixels + pixels > self._most_pixels:
            raise Refused(503, "busy", "too many images are waiting; try again later", self.retry_after)
        self.images += images
        self.pixels += pixels


class Admission:
    """Room reserved by one request."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.images = 0
        self.pixels = 0

    def grow(self, images: int = 0, pixels: int = 0) -> None:
        """Reserve more room.

        Raises:
            Refused: a limit would be exceeded.
        """
        self._room.take(images, pixels)
        self.images += images
        self.pixels += pixels
