"""Worker: a model that processes parts in sequence, in any process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doublehead.common.faults import told
from doublehead.data.loader import Waited
from doublehead.deploy.bulk.detecting import detect_batches, read_ahead
from doublehead.deploy.bulk.parquet import write_part
from doublehead.deploy.bulk.plan import BulkFolder
from doublehead.deploy.bulk.sources import Part
from doublehead.inference.predictor import load


@dataclass(frozen=True)
class Work:
    """Description of a job. It can be pickled, for workers in other processes."""

    weights: tuple[str, ...]  # several make an ensemble
    output: Path
    format: str
    score: float
    batch_size: int
    device: str
    precision: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> BulkFolder:
        """Output folder of the parts."""
        return BulkFolder(self.output, self.format)


class Worker:
    """A model that processes parts in sequence."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.predictor = load(work.weights, work.device, work.precision, work.settings)
        self.waited = 0.0  # seconds in which the model stood idle

    def do(self, number: int, part: Part, progress: Callable[[int], object] | None = None) -> None:
        """Detect objects in the images of a part, and write its file.

        Raises:
            Fault: memory ran out, or the file cannot be written.
        """
        smaller = self.work.batch_size // 2
        batches = Waited(read_ahead(part.items(), self.work.batch_size))
        found = []
        with told(f"try --batch-size {smaller}" if smaller else "use a machine with more"):
            for one in detect_batches(self.predictor, batches, self.work.score):
                found.append(one)
                if progress:
                    progress(1)
        found.sort(key=lambda one: one.index)
        write_part(self.work.folder.part(number), found, self.predictor.categories)
        self.waited += batches.seconds
