"""The output folder of a bulk run: its plan, its finished parts, and what is still to be done.

_plan.json           what is done, by which a run that goes on is known to be the same
part-000000.parquet  the first part; where it stands, it is finished. With --format coco in the folder `parts`
predictions.json     with --format coco, once every part is there; and bad.jsonl, the images that could not be read
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
"""What a plan lacks that was written before there were inference options."""


@dataclass(frozen=True)
class BulkPlan:
    """All that a part's content follows from, up to rounding."""

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
        """The plan of a model, or of the several of an ensemble, on these images.

        Raises:
            DoubleheadError: there are no such weights, or no such option.
        """
        digest = " ".join(fingerprint(resolve(one)) for one in weights)
        options = json.dumps(option_names(settings), sort_keys=True)
        return cls(digest, sum(listing.sizes), listing.digest, listing.size, score, precision, format, options)


class BulkFolder:
    """Paths of a run's output, and what stands there."""

    def __init__(self, path: Path, format: str) -> None:
        self.path = path
        self.plan = path / "_plan.json"  # readers of Parquet folders pass over names that begin with _
        self.parts = path if format == "parquet" else path / "parts"
        self.predictions = path / "predictions.json"
        self.bad = path / "bad.jsonl"

    def part(self, number: int) -> Path:
        """The file of a part, numbered from 0."""
        return self.parts / f"part-{number:06}.parquet"

    def finished(self, many: int) -> set[int]:
        """The numbers of the parts that are done, of so many."""
        there = {path.name for path in self.parts.glob("part-*.parquet")}
        return {number for number in range(many) if self.part(number).name in there}

    def begin(self, plan: BulkPlan) -> None:
        """Create the folder, or resume the job that was begun there.

        Raises:
            DoubleheadError: what was begun there is something else.
            Fault: it cannot be written.
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
    """SHA-256 of a model's file, and of the file of weights beside an OpenVINO model.

    Raises:
        DoubleheadError: there is no such file.
    """
    files = (weights, weights.with_suffix(".bin")) if weights.suffix.lower() == ".xml" else (weights,)
    try:
        return " ".join(map(sha256, files))
    except OSError as error:
        raise DoubleheadError(f"{weights}: cannot be read ({error.strerror})") from error


def _difference(key: str, stored: Any, asked: Any) -> str:
    return f"other {key}" if key in ("weights", "sources") else f"{key.replace('_', ' ')} {stored}, not {asked}"
