"""Reading of weights from files of other programs, without running code in them."""

from __future__ import annotations

import codecs
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from doublehead.common.errors import DoubleheadError

HOLDERS = ("state_dict", "model")
"""Keys under which training programs store the weights, next to optimiser state and metadata."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights, and other content, of a .safetensors file, a torch pickle, or a .pkl of numpy arrays.

    The prefix `module.`, which DataParallel adds to every key, is removed.

    Raises:
        DoubleheadError: the file is missing or damaged, contains no weights, or would run code.
    """
    if not path.is_file():
        raise DoubleheadError(f"{path}: there is no such file")
    beside: dict[str, Any] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                beside = file.metadata() or {}
        elif path.suffix == ".pkl":
            content = _as_tensors(_unpickle_arrays(path))
        else:
            content = _unpickle(path)
    except DoubleheadError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DoubleheadError(f"{path}: cannot be read as weights ({reason})") from error
    if isinstance(content, dict):
        holder = next((key for key in HOLDERS if isinstance(content.get(key), dict)), None)
        if holder:
            beside = {key: value for key, value in content.items() if key != holder}
            content = content[holder]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise DoubleheadError(f"{path}: holds no weights: a dict of tensors, or one under {' or '.join(HOLDERS)}")
    return {key.removeprefix("module."): value for key, value in content.items()}, beside


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if not unsafe:  # torch's own words are a page long
            raise ValueError("it is damaged, or not a file of torch.save") from error
        raise DoubleheadError(
            f"{path}: holds more than weights ({unsafe[1]}) and would have to run code, so it was not loaded; if you "
            "trust it, open it with torch.load(..., weights_only=False) where the program that wrote it is installed, "
            "and torch.save only its state dict"
        ) from error


ARRAYS: dict[tuple[str, str], Any] = {
    (f"numpy.{core}.multiarray", name): example.__reduce__()[0]
    for core in ("core", "_core")
    for name, example in (("_reconstruct", np.zeros(1)), ("scalar", np.float64(0)))
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): codecs.encode}
"""Everything that a pickle of numpy arrays needs to call."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that only allows numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return ARRAYS[module, name]


def _unpickle_arrays(path: Path) -> Any:
    """Load detectron2's .pkl files, some of which were written by Python 2."""
    with path.open("rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except pickle.UnpicklingError as error:
            if not re.fullmatch(r"[\w.]+\.\w+", str(error)):
                raise
            raise DoubleheadError(
                f"{path}: holds more than numpy arrays ({error}) and would have to run code, so it was not loaded"
            ) from error


def _as_tensors(content: Any) -> Any:
    """Convert the arrays in nested dicts to tensors."""
    if isinstance(content, dict):
        return {key: _as_tensors(value) for key, value in content.items()}
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiu":
        return torch.from_numpy(np.ascontiguousarray(content).copy())
    return content
