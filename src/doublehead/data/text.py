"""Text as other programs write it: byte order marks, JSON, YAML, flags and class names."""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from doublehead.common.errors import DoubleheadError, printable

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_NO = {"", "0", "0.0", "no", "n", "false", "f", "none", "null"}
_JOINERS = "\u200c\u200d"  # inside other scripts and emoji they change what is seen


def read_text(path: Path, what: str, kind: str = "") -> str:
    """Read a text file as UTF-8, or as its byte order mark says.

    Args:
        path: the file.
        what: what it is read as, for the error: "a list of images".
        kind: the error's kind.

    Raises:
        DoubleheadError: the file is missing, unreadable or not text.
    """
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
        return content.decode(encoding)
    except FileNotFoundError as error:
        raise DoubleheadError(f"{path}: there is no such file", kind) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DoubleheadError(f"{path}: cannot be read as {what} ({error})", kind) from error


def head_has(path: Path, marks: Sequence[str]) -> bool:
    """Whether the start of a file has all of these marks, as a first look at what it may be."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    return all(mark.encode() in head for mark in marks)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DoubleheadError: the file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(read_text(path, "JSON"))
    except (ValueError, RecursionError) as error:
        raise DoubleheadError(f"{path}: cannot be read as JSON ({error})", "annotation files unreadable") from error


def read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read JSON lines (NDJSON), each a mapping, with the number of each line from 1.

    Raises:
        DoubleheadError: the file is missing or unreadable, or a line is no mapping in JSON.
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(read_text(path, "JSON lines").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DoubleheadError(
                    f"{path}: line {number} cannot be read as JSON ({error})", "annotation files unreadable"
                ) from error
            if not isinstance(row, dict):
                raise DoubleheadError(f"{path}: line {number} is not a mapping", "annotation files unreadable")
            rows.append((number, row))
    return rows


def read_strings(path: Path) -> dict[str, Any]:
    """Read a YAML mapping whose scalars stay as written: `010`, `12:30`, `no` and `null` are strings.

    Raises:
        DoubleheadError: the file is missing, is not YAML, or holds something else.
    """
    text = read_text(path, "YAML")
    try:
        values = yaml.load(text, yaml.BaseLoader)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:  # TypeError: a mapping as a key
        raise DoubleheadError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise DoubleheadError(f"{path}: must hold `key: value` lines")
    return values


def dicts(content: Any) -> list[dict[str, Any]]:
    """The mappings in a list; none if it is no list."""
    return [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []


def is_number(text: str) -> bool:
    """Whether text is a number, also one that is not finite."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_set(flag: Any) -> bool:
    """Whether a flag is set: 1, true, "1", "true", "yes" ..., as tools write `iscrowd` or `difficult`."""
    return str(flag).strip().lower() not in _NO if flag is not None else False


def class_name(text: str) -> str:
    """Return a class name as a person sees it: no invisible characters, no white space at the ends."""
    shown = []
    for place, char in enumerate(text):
        if char.isspace():
            shown.append(" ")
        elif char in _JOINERS:
            joins = 0 < place < len(text) - 1 and not (text[place - 1].isascii() or text[place + 1].isascii())
            shown.append(char * joins)
        elif unicodedata.category(char) not in ("Cc", "Cf"):
            shown.append(char)
    return printable("".join(shown)).strip()
