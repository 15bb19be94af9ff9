"""Files of models, and what is said of them by all that open one."""

from __future__ import annotations

from pathlib import Path

import doublehead
from doublehead.common.errors import DoubleheadError

CHECKPOINT = ".safetensors"
"""Suffix of checkpoints."""

EXPORTED = (".onnx", ".xml", ".tflite")
"""Suffixes of exported models."""


def of_newer_version(path: Path, version: str) -> DoubleheadError:
    """What to raise where a file is of a version of the package that is still to come."""
    return DoubleheadError(
        f"{path}: was written by doublehead {version}, which is newer than this one ({doublehead.__version__}): pip "
        "install --upgrade doublehead"
    )


def missing_weights(path: str | Path) -> DoubleheadError:
    """What to raise where no weights are at a path."""
    return DoubleheadError(
        f"{path}: there is no such file; give the path of a checkpoint such as best.safetensors, of a file that "
        "`doublehead export` wrote, or a name that `doublehead models` lists as published"
    )
