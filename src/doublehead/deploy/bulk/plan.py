"""The output folder of a bulk job: its plan and its finished parts.

_plan.json           description of the job, which a resumed job must match
part-000000.parquet  the first part; files of parts are always complete. With --format coco in the folder `parts`
predictions.json     with --format coco, once all parts are complete; and bad.jsonl, the unreadable images
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError
from doublehead.common.files import sha256, whole, writing
from doublehead.config import option_names
from doublehead.deploy.bulk.sources import Listing
from doublehead.model.interop.published import resolve

BEFORE_OPTIONS = {"settings": "{}"}
"""Defaults for plans written before the introduction of inference options."""


@dataclass(frozen=True)
class BulkPlan:
    """Everything that determines the content of parts, up to rounding."""

    weights: str  # SHA-256
    images: int
    sources: str  # SHA-256 of their names and order
    part_size: int
    score: float
    precision: str
    format: str
    settings: str  # inference options that differ from the model's, as JSON

    @classmethod
    def of(
        cls,
        weights: Sequence[str],
        listing: Listing,
        score: float,
        precision: str,
        format: str,
        settings: Mapping[str, Any],
    ) -> BulkPlan:
        """Create the plan of a model or an ensemble on these images.

        Raises:
            DoubleheadError: the weights do not exist, or an option is unknown.
        """
        digest = " ".join(fingerprint(resolve(one)) for one in weights)
        options = json.dumps(option_names(settings), sort_keys=True)
        return cls(digest, sum(listing.sizes), listing.digest, listing.size, score, precision, format, options)


class BulkFolder:
    """Output paths and finished parts of a job."""

    def __init__(self, path: Path, format: str) -> None:
        self.path = path
        self.plan = path / "_plan.json"  # readers of Parquet folders pass over names that begin with _
        self.parts = path if format == "parquet" else path / "parts"
        self.predictions = path / "predictions.json"
        self.bad = path / "bad.jsonl"

    def part(self, number: int) -> Path:
        """File of a part, numbered from 0."""
        return self.parts / f"part-{number:06}.parquet"

    def finished(self, many: int) -> set[int]:
        """Numbers of the finished parts among `many`."""
        there = {path.name for path in self.parts.glob("part-*.parquet")}
        return {number for number in range(many) if self.part(number).name in there}

    def begin(self, plan: BulkPlan) -> None:
        """Create the folder, or resume the job that was begun there.

        Raises:
            DoubleheadError: the folder belongs to another job.
            Fault: the folder cannot be written.
        """
        with writing(self.path):
            self.parts.mkdir(parents=True, exist_ok=True)
        has_parts = any(self.parts.glob("part-*.parquet"))  # before the plan, which another shard writes first
        if not self.plan.exists():
            if has_parts:
                raise DoubleheadError(f"{self.path}: has parts, but no {self.plan.name}; give another --output")
            with whole(self.plan) as temporary:
                temporary.write_text(json.dumps(asdict(plan), indent=1), encoding="utf-8")
        self._require(plan)  # which another shard may have written at the same time

    def _require(self, plan: BulkPlan) -> None:
        try:
            stored = BEFORE_OPTIONS | json.loads(self.plan.read_text(encoding="utf-8"))
            changed = {key: stored[key] for key, asked in asdict(plan).items() if stored[key] != asked}
        except (ValueError, KeyError, TypeError) as error:
            raise DoubleheadError(f"{self.plan}: is damaged ({error!r}); give another --output") from error
        if "part_size" in changed:  # the same sources then make other parts
            changed.pop("sources", None)
        if changed:
            words = "; ".join(_difference(key, value, getattr(plan, key)) for key, value in changed.items())
            raise DoubleheadError(
                f"{self.path}: was started with {words}: use the same to resume, or give another --output"
            )


def fingerprint(weights: Path) -> str:
    """SHA-256 of a model file, and of the weights file beside an OpenVINO model.

    Raises:
        DoubleheadError: the file does not exist.
    """
    files = (weights, weights.with_suffix(".bin")) if weights.suffix.lower() == ".xml" else (weights,)
    try:
        return " ".join(map(sha256, files))
    except OSError as error:
        raise DoubleheadError(f"{weights}: cannot be read ({error.strerror})") from error


def _difference(key: str, stored: Any, asked: Any) -> str:
    return f"other {key}" if key in ("weights", "sources") else f"{key.replace('_', ' ')} {stored}, not {asked}"
