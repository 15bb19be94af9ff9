"""Names in place of paths, in everything that leaves the machine: where a user's files lie is nobody's business."""

from __future__ import annotations

from pathlib import PureWindowsPath
from typing import Any


def names_only(values: Any) -> Any:
    """Cut every path in nested values to the name of its file or folder.

    A path is any text with a separator of POSIX or Windows. No setting of ours has one for another reason.
    """
    if isinstance(values, dict):
        return {key: names_only(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [names_only(value) for value in values]
    if isinstance(values, str) and ("/" in values or "\\" in values):
        return PureWindowsPath(values).name  # takes both separators
    return values
