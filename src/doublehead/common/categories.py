"""Classes of a dataset or a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from doublehead.common.errors import DoubleheadError


@dataclass(frozen=True)
class Categories:
    """Class names and the dataset's own ids. Label k (1..C) inside the model is `names[k - 1]`, `ids[k - 1]`."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_json(cls, text: str | bytes) -> Categories:
        """Read the output of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        values = json.loads(text)
        return cls(tuple(values["names"]), tuple(values["ids"]))

    def to_json(self) -> str:
        """Names and ids, as checkpoints, exported models and tables of detections have them."""
        return json.dumps({"names": self.names, "ids": self.ids})

    @property
    def pairs(self) -> tuple[tuple[str, int], ...]:
        """Name and id of each."""
        return tuple(zip(self.names, self.ids, strict=True))


def require_same_classes(between: str, one: Categories, other: Categories) -> None:
    """Require equal classes.

    Args:
        between: what has these classes, in words: "the splits train and val".
        one: the classes of the first.
        other: the classes of the second.

    Raises:
        DoubleheadError: names, ids or their order differ.
    """
    if one != other:
        raise DoubleheadError(
            f"{between} have different classes, {some_classes(one.pairs)} and {some_classes(other.pairs)}: give both "
            "the same names and ids in the same order"
        )


def some_classes(pairs: Sequence[tuple[str, int]]) -> str:
    """The first few classes with their ids, in words."""
    named = ", ".join(f"`{name}` (id {number})" for name, number in pairs[:4])
    return named + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")
