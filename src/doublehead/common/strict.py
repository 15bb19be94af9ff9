"""The base of all settings: strict models, the bounds of their numbers, and sections that rows of a table add."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

Count = Annotated[int, Field(ge=1, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """Refuses unknown keys and numbers that are not finite, and cannot be changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Sectioned(Strict):
    """Settings that also hold sections, each of which a row of a table adds."""

    model_config = ConfigDict(extra="allow")

    def section(self, name: str) -> Any:
        """The settings of a section."""
        return self._sections()[name]

    def _sections(self) -> dict[str, Any]:
        assert self.model_extra is not None
        return self.model_extra

    def _check_sections(self, known: Mapping[str, type[Strict]], used: Iterable[str]) -> None:
        """Validate the sections, and give those that are used but left out their defaults.

        Raises:
            ValidationError: a section is not known, or a value in it does not fit.
        """
        fields: dict[str, Any] = {name: (settings, None) for name, settings in known.items()}
        given = create_model("Sections", __base__=Strict, **fields).model_validate(self._sections())
        self._sections().update({name: known[name]() for name in used})
        self._sections().update({name: getattr(given, name) for name in given.model_fields_set})
