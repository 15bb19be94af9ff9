"""Plan of a study: rows of a YAML file, each trained with every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from doublehead.common.errors import DoubleheadError, sentence
from doublehead.common.strict import Strict
from doublehead.config import read_yaml

AT_INFERENCE = "model.roi."
"""Prefix of the settings that a row may change if it uses another row's weights."""


class StudyRow(Strict):
    """A row of the table: a model to train, or the weights of another row evaluated with other settings."""

    model: str | None = Field(default=None, description="A preset, such as double-head-tiny, or weights to start from;")
    of: str | None = Field(default=None, description="or the row whose weights are measured with other `model.roi`.")
    settings: dict[str, Any] = Field(default={}, description="Any settings by their keys, as of `train --set`.")

    @model_validator(mode="after")
    def _one(self) -> StudyRow:
        if (self.model is None) == (self.of is None):
            raise ValueError("give either `model` or `of`")
        wrong = [key for key in self.settings if self.of and not key.startswith(AT_INFERENCE)]
        if wrong:
            raise ValueError(f"a row with `of` is not trained, and can change only {AT_INFERENCE}*, not {wrong[0]}")
        return self


class StudyPlan(Strict):
    """A study, as read from the file that `doublehead study` takes."""

    rows: dict[str, StudyRow] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    baseline: str = Field(default="single-fc", description="The row that the others are compared with.")
    split: str = Field(default="test", description="The split measured at the end of each run.")
    classes: tuple[str, ...] = Field(default=(), description="Classes whose AP is compared too, such as rare ones.")
    recipe: str | None = Field(default=None, description="As of `train --recipe`.")
    settings: dict[str, Any] = Field(default={}, description="Of every row; a row's own settings win.")

    def part(
        self,
        rows: Sequence[str] = (),
        seeds: Sequence[int] = (),
        baseline: str | None = None,
        classes: Sequence[str] = (),
        split: str | None = None,
    ) -> StudyPlan:
        """Return the plan limited to some rows and seeds, or with another baseline. The baseline is always included.

        Args:
            rows: names of rows; empty: all.
            seeds: seeds of the plan; empty: all.
            baseline: another row to compare with.
            classes: other classes whose AP is compared too; empty: the plan's.
            split: another split to evaluate.

        Raises:
            LookupError: a row or seed is unknown, or a row is selected without the one whose weights it uses.
        """
        baseline = baseline or self.baseline
        for name in (baseline, *rows):
            if name not in self.rows:
                raise LookupError(f"has no row `{name}`, but {', '.join(self.rows)}")
        for seed in seeds:
            if seed not in self.seeds:
                raise LookupError(f"has no seed {seed}, but {', '.join(map(str, self.seeds))}")
        chosen = {name: row for name, row in self.rows.items() if not rows or name in (baseline, *rows)}
        for name, row in chosen.items():
            if row.of is not None and row.of not in chosen:
                raise LookupError(f"row `{name}` takes the weights of `{row.of}`: name that row too")
        own = tuple(seed for seed in self.seeds if not seeds or seed in seeds)
        others = {"classes": tuple(classes) or self.classes, "split": split or self.split}
        return self.model_copy(update={"rows": chosen, "seeds": own, "baseline": baseline, **others})

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds

    @model_validator(mode="after")
    def _refer(self) -> StudyPlan:
        if self.baseline not in self.rows:
            raise ValueError(f"baseline: no row is called `{self.baseline}`")
        for name, row in self.rows.items():
            if "/" in name or name.startswith("."):
                raise ValueError(f"rows: `{name}` is not a valid folder name")
            if row.of is not None and (row.of not in self.rows or self.rows[row.of].of is not None):
                raise ValueError(f"rows.{name}: `of` must name a row that is trained, not `{row.of}`")
        return self


@dataclass(frozen=True)
class StudyRun:
    """One row with one seed."""

    row: str
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}"

    @property
    def result(self) -> Path:
        """File with the results, which exists once the run is complete."""
        return self.folder / "result.json"


def read_plan(path: str | Path) -> StudyPlan:
    """Read the YAML file of a study.

    Raises:
        DoubleheadError: it is missing, or has a mistake.
    """
    try:
        return StudyPlan.model_validate(read_yaml(Path(path)))
    except ValidationError as error:
        raise DoubleheadError(f"{path}: {sentence(error)}") from error


def runs(plan: StudyPlan, output: Path) -> list[StudyRun]:
    """List all runs seed by seed, so that each seed completes a table; rows without training come last."""
    order = sorted(plan.rows, key=lambda name: plan.rows[name].of is not None)
    return [StudyRun(name, seed, output / name / f"seed-{seed}") for seed in plan.seeds for name in order]
