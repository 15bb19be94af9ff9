"""Errors of the user or the machine: one sentence that names what is wrong and the fix."""

from __future__ import annotations

import importlib
import reprlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class DoubleheadError(Exception):
    """An error in the input, described in one sentence. The command line prints it and exits with code 2.

    Args:
        sentence: message that names the file, field or image, and the fix.
        kind: kind of error in the plural, for counting.
    """

    def __init__(self, sentence: str, kind: str = "") -> None:
        super().__init__(printable(sentence))
        self.kind = kind


class Fault(DoubleheadError):
    """A failure of the machine rather than of the input: memory, disk, network or a process. Retrying may help."""


def sentence(error: ValidationError) -> str:
    """Convert Pydantic's errors to one sentence that names each key and its problem."""
    findings = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            findings.append(f"unknown key `{key}`")
        else:
            findings.append(f"`{key}`: {item['msg'].removeprefix('Value error, ')}" if key else item["msg"])
    return "; ".join(findings)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which pip command adds it.

    Raises:
        DoubleheadError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DoubleheadError(
            f"this needs {module.split('.')[0]}, which is not installed: pip install 'doublehead[{extra}]'"
        ) from error


def printable(text: str) -> str:
    """Text that any output takes: halves of characters, as in file names that are no UTF-8, are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def brief(value: Any) -> str:
    """A user's value as code for a sentence, shortened where it is long or deep."""
    return reprlib.repr(value)
