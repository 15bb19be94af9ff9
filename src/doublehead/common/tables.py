"""Tables of named parts: a row is found by its name, and what it only names is imported when it is used."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any


def row_of(kind: str, name: str, table: Mapping[str, Any]) -> str:
    """The name, if the table has a row of it.

    Raises:
        ValueError: it has none; the sentence lists the rows.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} `{name}`; choose {', '.join(table)}")
    return name


def imported(part: str | Callable[..., Any]) -> Callable[..., Any]:
    """The class or function of a row, imported if the row only names it as `package.module:name`."""
    return pkgutil.resolve_name(part) if isinstance(part, str) else part
