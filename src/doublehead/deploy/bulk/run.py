"""Detection in any number of images, in parts: an interruption loses at most one part."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from doublehead.common.console import Console
from doublehead.common.distribution import parse_shard
from doublehead.common.errors import DoubleheadError, require
from doublehead.common.files import remove_unfinished, whole
from doublehead.deploy.bulk.coco import coco_writer
from doublehead.deploy.bulk.on_ray import predict_on_ray
from doublehead.deploy.bulk.parquet import count_bad, read_categories, read_part
from doublehead.deploy.bulk.plan import BulkFolder, BulkPlan
from doublehead.deploy.bulk.sources import Listing, Part
from doublehead.deploy.bulk.worker import Work, Worker
from doublehead.deploy.choices import ENGINES


@dataclass(frozen=True)
class Outcome:
    """Progress of a bulk job."""

    folder: BulkFolder
    format: str
    parts: int
    finished: int
    images: int  # in finished parts
    bad: int  # of these, could not be read
    waited: float | None  # share of the time in which this process's model, if there was one, stood idle

    def __str__(self) -> str:
        """Describe the progress in sentences."""
        waited = "" if self.waited is None else f"{self.waited:.0%} of the time went into waiting for images\n"
        return waited + self._where()

    def _where(self) -> str:
        if self.finished < self.parts:
            return f"{self.finished} of {self.parts} parts are in {self.folder.parts}; other shards do the rest"
        where = {"parquet": self.folder.parts, "coco": self.folder.predictions}[self.format]
        listed = {"parquet": "the column `fault` says why", "coco": f"{self.folder.bad} lists them"}[self.format]
        bad = f"; {self.bad} of them could not be read: {listed}" if self.bad else ""
        return f"detections of {self.images} images are in {where}{bad}"


def predict_bulk(
    work: Work,
    listing: Listing,
    shard: str = "1/1",
    engine: str = "plain",
    workers: int = 1,
    progress: bool = False,
) -> Outcome:
    """Process the unfinished parts, and write the output format once all parts are complete.

    The output is independent of interruptions, shards and workers. Memory does not grow with the number of images.

    Args:
        work: description of the job, with its output folder.
        listing: the images.
        shard: i/n processes every n-th part, starting with the i-th.
        engine: `plain`, in this process; or `ray`, on Ray Data.
        workers: number of Ray workers, each with its own model.
        progress: whether to show a progress bar.

    Raises:
        DoubleheadError: the folder contains parts of another job, or a part could not be processed.
    """
    require("pyarrow.parquet", "bulk")
    (place, shares), folder = parse_shard(shard), work.folder
    if engine not in ENGINES:
        raise DoubleheadError(f"--engine {engine}: is unknown; use {' or '.join(ENGINES)}")
    folder.begin(BulkPlan.of(work.weights, listing, work.score, work.precision, work.format, work.settings))
    done = folder.finished(len(listing))
    mine = {number for number in range(place, len(listing), shares) if number not in done}
    todo, waited = listing.chosen(mine.__contains__), None
    console = Console(progress)
    with console.progress("predicting", sum(listing.sizes[number] for number in mine)) as advance:
        try:
            if mine and engine == "ray":
                predict_on_ray(work, todo, workers, advance)
            elif mine:
                waited = _predict_plainly(work, todo, advance)
        except KeyboardInterrupt:
            console.say(f"stopped; run the same command to resume from the parts in {folder.parts}")
            raise
    return _finish(work, listing, waited)


def _predict_plainly(work: Work, todo: Iterator[tuple[int, Part]], progress: Callable[[int], object]) -> float:
    worker, began = Worker(work), time.monotonic()
    for number, part in todo:
        worker.do(number, part, progress)
    return worker.waited / (time.monotonic() - began)


def _finish(work: Work, listing: Listing, waited: float | None) -> Outcome:
    """After the last part, remove incomplete files and write the output format."""
    folder = work.folder
    done = folder.finished(len(listing))
    bad = sum(count_bad(folder.part(number)) for number in done)
    if len(done) == len(listing):
        remove_unfinished(folder.path)
        remove_unfinished(folder.parts)
        if work.format == "coco" and not folder.predictions.exists():
            _write_coco(folder, len(listing))
    images = sum(listing.sizes[number] for number in done)
    return Outcome(folder, work.format, len(listing), len(done), images, bad, waited)


def _write_coco(folder: BulkFolder, parts: int) -> None:
    """Write predictions.json from all parts in sequence, as the last file."""
    found = (one for number in range(parts) for one in read_part(folder.part(number)))
    with (
        coco_writer(folder.predictions, read_categories(folder.part(0))) as writer,
        whole(folder.bad) as bad,
        bad.open("w", encoding="utf-8") as listed,
    ):
        for one in found:
            if one.detections is None:
                listed.write(json.dumps({"name": one.name, "fault": one.fault}) + "\n")
            else:
                writer.add(one.name, one.width, one.height, one.detections)
