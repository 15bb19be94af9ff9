"""Settings of augmentation: named steps with their settings. Independent of torch; see `transforms.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    RootModel,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from doublehead.common.errors import sentence
from doublehead.common.strict import Count, Fraction, Share, Strict
from doublehead.common.tables import row_of


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("give the smaller value first")
    return values


Factor = Annotated[float, Field(gt=0, le=10)]
Range = Annotated[tuple[Factor, Factor], AfterValidator(_rising)]
"""Smallest and largest value of a uniform draw."""
Quality = Annotated[int, Field(ge=1, le=100)]


VISIBLE: Any = Field(
    default=0.1, description="Smallest share of a box that must remain in the image; boxes with less are dropped."
)


class Chance(Strict):
    """A step with a probability."""

    p: Fraction = Field(default=0.5, description="Probability.")


class Sized(Strict):
    """A step that determines the input size."""

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


class IoUCrop(Chance):
    """Crop to a random part that keeps some object whole (SSD, section 2.2)."""

    visible: Fraction = Field(
        default=0.0,
        description="Smallest share of a box that must remain; boxes with their centre outside are always dropped.",
    )


class Affine(Chance):
    """Rotate and shear about the centre. Boxes become the upright boxes around their turned corners."""

    degrees: float = Field(default=5.0, ge=0, le=180, description="Largest rotation to either side, in degrees.")
    shear: float = Field(default=3.0, ge=0, le=60, description="Largest shear to either side, in degrees.")
    visible: Fraction = VISIBLE


class Mosaic(Chance):
    """Lay the image and three others around a random point, each at a random scale (YOLOv4, section 3.3)."""

    scale: Range = Field(
        default=(0.4, 1.0), description="Range of each image's scale; 1: as large as the whole mosaic."
    )
    visible: Fraction = VISIBLE


class Mixup(Chance):
    """Blend with another image, and keep the boxes of both (Zhang et al. 2019, Bag of Freebies, section 3.1)."""

    alpha: float = Field(
        default=8.0, gt=0, le=1e4, description="Parameter of the Beta distribution of the weights; large: near 0.5."
    )


class CopyPaste(Chance):
    """Paste objects of another image (Ghiasi et al. 2021), as the boxes around them."""

    objects: Count = Field(default=3, le=1000, description="Maximum objects pasted.")
    scale: Range = Field(default=(0.5, 1.5), description="Range of the factor by which each is resized.")
    feather: Fraction = Field(
        default=0.1, description="Share of the shorter side over which the edge fades in; 0: a hard edge."
    )
    covered: Fraction = Field(
        default=0.3, description="Largest share of a box that may be covered; what finds no such place is left out."
    )


class Colour(Strict):
    """Change brightness, contrast, saturation and hue."""

    strength: Fraction = Field(default=0.3, description="Strength of the change; 0: none.")


class Blur(Chance):
    """Blur with a Gaussian."""

    sigma: Range = Field(default=(0.3, 2.0), description="Range of the standard deviation in pixels.")


class Jpeg(Chance):
    """Apply JPEG compression."""

    quality: Annotated[tuple[Quality, Quality], AfterValidator(_rising)] = Field(
        default=(30, 90), description="Range of the quality, 1 to 100."
    )


class Erasing(Chance):
    """Replace a rectangle by noise (Zhong et al. 2020, Random Erasing)."""

    area: Annotated[tuple[Share, Share], AfterValidator(_rising)] = Field(
        default=(0.02, 0.2), description="Range of its share of the image."
    )
    visible: Fraction = Field(
        default=0.3, description="Smallest share of a box that must remain; boxes with less are dropped."
    )


class Use(Strict):
    """Call a user function."""

    transform: str = Field(
        description="package.module:name of a callable on (image, boxes, labels), or of a Compose of Albumentations."
    )

    @field_validator("transform")
    @classmethod
    def _importable(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.]+:[\w.]+", name):
            raise ValueError("write it as package.module:name")
        return name


@dataclass(frozen=True)
class StepRow:
    """A step that `data.augment` can name.

    Args:
        config: its settings.
        build: called with its settings and the model's `InputSize`; gives a `Step`, or None where these settings do
            nothing. Or where to import it from, as `package.module:name`.
        plain: the field that a plain value sets, as in `{flip: 0.2}`; "": there is none.
        closes: whether the step is left out in the last tenth of a run.
    """

    config: type[Strict]
    build: str | Callable[..., Any]
    plain: str = ""
    closes: bool = False


STEPS: dict[str, StepRow] = {
    "iou_crop": StepRow(IoUCrop, "doublehead.data.geometry:iou_crop", "p"),
    "short_sides": StepRow(ShortSides, "doublehead.data.geometry:short_sides", "sides"),
    "lsj": StepRow(LargeScaleJitter, "doublehead.data.geometry:lsj"),
    "flip": StepRow(Chance, "doublehead.data.geometry:flip", "p"),
    "vertical_flip": StepRow(Chance, "doublehead.data.geometry:vertical_flip", "p"),
    "rotate90": StepRow(Chance, "doublehead.data.geometry:rotate90", "p"),
    "affine": StepRow(Affine, "doublehead.data.geometry:affine", "p"),
    "mosaic": StepRow(Mosaic, "doublehead.data.mixing:mosaic", "p", closes=True),
    "mixup": StepRow(Mixup, "doublehead.data.mixing:mixup", "p", closes=True),
    "copy_paste": StepRow(CopyPaste, "doublehead.data.mixing:copy_paste", "p"),
    "colour": StepRow(Colour, "doublehead.data.appearance:colour", "strength"),
    "blur": StepRow(Blur, "doublehead.data.appearance:blur", "p"),
    "jpeg": StepRow(Jpeg, "doublehead.data.appearance:jpeg", "p"),
    "erasing": StepRow(Erasing, "doublehead.data.appearance:erasing", "p"),
    "use": StepRow(Use, "doublehead.data.user_step:use", "transform"),
}

STANDARD: list[dict[str, Any]] = [
    {"iou_crop": {"p": 0.0}},  # first what leaves fewer pixels to work on
    {"short_sides": {"sides": None}},
    {"flip": {"p": 0.5}},
    {"vertical_flip": {"p": 0.0}},
    {"colour": {"strength": 0.0}},
]
"""Default steps."""

PRESETS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "light": [{"flip": {"p": 0.5}}, {"colour": {"strength": 0.5}}],
    "strong": [
        {"mosaic": {"p": 0.5}},
        {"copy_paste": {"p": 0.3}},
        {"iou_crop": {"p": 0.3}},
        {"affine": {"p": 0.3}},
        {"flip": {"p": 0.5}},
        {"colour": {"strength": 0.5}},
        {"blur": {"p": 0.1}},
        {"jpeg": {"p": 0.2}},
        {"erasing": {"p": 0.2}},
    ],
}
"""Lists of steps by name, as `data.augment=strong`."""

FORMER = {"horizontal_flip": "flip"}
"""Names of steps in version 0.1."""


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
            return {"name": name, "settings": row.config.model_validate(_fields(name, settings))}
        except ValidationError as error:
            raise ValueError(f"{name}: {sentence(error)}") from error

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return {self.name: self.settings.model_dump(mode="json")}


class AugmentConfig(RootModel[tuple[AugmentStep, ...]]):
    """Augmentation of training images: a list of steps, applied in that order, or the name of one of `PRESETS`.

    A mapping instead of the list changes single steps of the default list, or of that in `steps`, as in
    `{flip: {p: 0.2}, colour: {strength: 0.3}}` or `{steps: strong, flip: 0}`. A mapping with `use` and no `steps` is a
    complete list, without the default steps.
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

    @property
    def closed(self) -> AugmentConfig:
        """Steps for the last tenth of a run, in which images resemble those at inference."""
        return AugmentConfig(root=tuple(step for step in self.root if not STEPS[step.name].closes))


def listed(values: Any) -> Any:
    """Convert any form of `data.augment` to a list of steps.

    Raises:
        ValueError: a preset is unknown.
    """
    if isinstance(values, str):
        return PRESETS[row_of("preset", values, PRESETS)]
    if not isinstance(values, Mapping):
        return values
    steps = listed(values.get("steps", [] if "use" in values else STANDARD))
    if not isinstance(steps, list | tuple):
        return steps
    steps = list(steps)
    for key, value in values.items():
        if key == "steps":
            continue
        name = FORMER.get(str(key), str(key))
        change = _fields(name, value)
        places = [i for i, step in enumerate(steps) if isinstance(step, Mapping) and name in step]
        if not places:
            steps.append({name: change})
        for place in places:
            before = _fields(name, steps[place][name])
            both = isinstance(change, Mapping) and isinstance(before, Mapping)
            steps[place] = {name: {**before, **change} if both else change}
    return steps


def _fields(name: str, value: Any) -> Any:
    """Settings of a step as a mapping, also where they are one plain value."""
    plain = STEPS[name].plain if name in STEPS else ""
    if plain and not isinstance(value, Mapping | Strict) and value is not None:
        return {plain: value}
    return {} if value is None else value
