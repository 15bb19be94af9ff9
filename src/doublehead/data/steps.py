"""Augmentation as a config says it: named steps with their own settings. No torch: `transforms.py` does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, RootModel, SerializeAsAny, ValidationError, model_serializer, model_validator

from doublehead.common.errors import sentence
from doublehead.common.strict import Count, Fraction, Positive, Strict
from doublehead.common.tables import row_of


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("give the smaller value first")
    return values


Range = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]
"""Smallest and largest value of a uniform draw."""


VISIBLE: Any = Field(
    default=0.1, description="Smallest share of a box that must remain in the image; boxes with less are dropped."
)


class Chance(Strict):
    """A step that is done or not."""

    p: Fraction = Field(default=0.5, description="Probability.")


class Sized(Strict):
    """A step that chooses the size of the image that the model gets."""

    def limits(self, short_side: int, long_side: int) -> list[tuple[int, int]]:
        """Short side and limit of the long side, in pixels, of each size that the step may leave.

        Args:
            short_side: the model's own.
            long_side: the model's limit of the long side.
        """
        raise NotImplementedError


class ShortSides(Sized):
    """Resize to a short side drawn at random; the long side has the model's limit."""

    sides: tuple[Count, ...] | None = Field(
        default=None, min_length=1, description="Short sides in pixels; null: model.input.short_side alone."
    )

    def limits(self, short_side: int, long_side: int) -> list[tuple[int, int]]:  # noqa: D102
        return [(side, long_side) for side in sorted(set(self.sides or (short_side,)))]


class LargeScaleJitter(Sized):
    """Resize by a random factor, then crop or pad to a square (Ghiasi et al., Simple Copy-Paste, section 3)."""

    size: Count | None = Field(
        default=None,
        description="Side of the square in pixels; null: as many pixels as the model's input has, 1024 for 800 x 1333.",
    )
    scale: Range = Field(default=(0.1, 2.0), description="Range of the factor; 1: the image just fits the square.")
    visible: Fraction = VISIBLE

    def side(self, short_side: int, long_side: int) -> int:
        """Side of the square in pixels."""
        return self.size or max(32, 32 * round(sqrt(short_side * long_side) / 32))

    def limits(self, short_side: int, long_side: int) -> list[tuple[int, int]]:  # noqa: D102
        return [(self.side(short_side, long_side),) * 2]


class Colour(Strict):
    """Change brightness, contrast, saturation and hue."""

    strength: Fraction = Field(default=0.3, description="Strength of the change; 0: none.")


@dataclass(frozen=True)
class StepRow:
    """A step that `data.augment` can name.

    Args:
        config: its settings.
        build: called with its settings and the model's `InputSize`; gives a `Step`, or None where these settings do
            nothing. Or where to import it from, as `package.module:name`.
    """

    config: type[Strict]
    build: str | Callable[..., Any]


STEPS: dict[str, StepRow] = {
    "iou_crop": StepRow(Chance, "doublehead.data.transforms:iou_crop"),
    "short_sides": StepRow(ShortSides, "doublehead.data.transforms:short_sides"),
    "lsj": StepRow(LargeScaleJitter, "doublehead.data.geometry:lsj"),
    "flip": StepRow(Chance, "doublehead.data.transforms:flip"),
    "vertical_flip": StepRow(Chance, "doublehead.data.transforms:vertical_flip"),
    "colour": StepRow(Colour, "doublehead.data.transforms:colour"),
}

STANDARD: list[dict[str, Any]] = [
    {"iou_crop": {"p": 0.0}},  # first what leaves fewer pixels to work on
    {"short_sides": {"sides": None}},
    {"flip": {"p": 0.5}},
    {"vertical_flip": {"p": 0.0}},
    {"colour": {"strength": 0.0}},
]
"""The steps of a config that lists none."""

FORMER: dict[str, tuple[str, str]] = {
    "iou_crop": ("iou_crop", "p"),
    "short_sides": ("short_sides", "sides"),
    "horizontal_flip": ("flip", "p"),
    "vertical_flip": ("vertical_flip", "p"),
    "colour": ("colour", "strength"),
}
"""Keys of `data.augment` in version 0.1, each a plain value, and the step and field that they set."""


class AugmentStep(Strict):
    """A step, written as `{name: {field: value}}`."""

    name: str
    settings: SerializeAsAny[Strict]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        if isinstance(values, AugmentStep):
            return values
        if not isinstance(values, Mapping) or len(values) != 1:
            raise ValueError("write each step as {name: {field: value}}, such as {flip: {p: 0.5}}")
        ((name, settings),) = values.items()
        row = STEPS[row_of("step", name, STEPS)]
        try:
            return {"name": name, "settings": row.config.model_validate({} if settings is None else settings)}
        except ValidationError as error:
            raise ValueError(f"{name}: {sentence(error)}") from error

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return {self.name: self.settings.model_dump(mode="json")}


class AugmentConfig(RootModel[tuple[AugmentStep, ...]]):
    """Augmentation of training images: a list of steps, done in that order.

    A mapping in place of the list changes single steps of the standard list, or of `steps` in it, as in
    `{flip: {p: 0.2}, colour: {strength: 0.3}}`. Its keys may be those of version 0.1, with a plain value.
    """

    model_config = ConfigDict(frozen=True)

    root: tuple[AugmentStep, ...] = Field(default_factory=lambda: AugmentConfig.model_validate({}).root)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        return listed(values)

    @property
    def steps(self) -> tuple[AugmentStep, ...]:
        """The steps, in order."""
        return self.root


def listed(values: Any) -> Any:
    """Steps as a list, however `data.augment` says them."""
    if not isinstance(values, Mapping):
        return values
    steps = values.get("steps", STANDARD)
    if not isinstance(steps, list | tuple):
        return steps
    steps = list(steps)
    for key, value in values.items():
        if key == "steps":
            continue
        name, field = FORMER.get(key, (key, None)) if not isinstance(value, Mapping) else (key, None)
        change = value if field is None else {field: value}
        places = [i for i, step in enumerate(steps) if isinstance(step, Mapping) and name in step]
        if not places:
            steps.append({name: change})
        for place in places:
            both = isinstance(change, Mapping) and isinstance(steps[place][name], Mapping)
            steps[place] = {name: {**steps[place][name], **change} if both else change}
    return steps
