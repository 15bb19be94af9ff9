"""Whatever a person hands over as an image, or as several, as PIL images in RGB."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.images import read_image, to_rgb

ImageLike = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray | Tensor
"""A path, an http(s) address, the bytes of an image file, an open file, a PIL image, an array (H, W, 3) or a tensor
(3, H, W); uint8, or float in 0..1; RGB, grey or RGBA."""

TAKEN = "a path, an http(s) address, bytes, an open file, a PIL image, an array or a tensor"
PATIENCE = 30.0
"""Seconds without a byte after which a server counts as dead."""
LARGEST = 100 * 2**20
"""Bytes of a file that is fetched from a server."""


def is_one_image(images: Any) -> bool:
    """Whether this is one image rather than a collection of them.

    Raises:
        DoubleheadError: it is neither.
    """
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim != 4
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or hasattr(images, "read"):
        return True
    if isinstance(images, Iterable) and not isinstance(images, dict):
        return False
    raise _refused(images)


def as_picture(image: Any) -> Image.Image:
    """Any kind of image as a PIL image in RGB.

    Args:
        image: see ImageLike.

    Raises:
        DoubleheadError: the file cannot be read or fetched, or the shape, type or range is not an image's.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        return read_image(Path(image), _fetched(image))
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if path.is_dir():
            raise DoubleheadError(
                f"{path}: is a folder; give its images, such as sorted(Path({str(path)!r}).glob('*.jpg')), or use "
                "`doublehead predict`"
            )
        return read_image(path)
    if isinstance(image, bytes | bytearray | memoryview):
        return read_image(Path("the bytes given"), bytes(image))
    if hasattr(image, "read"):
        return read_image(Path(str(getattr(image, "name", "the file given"))), image.read())
    if isinstance(image, Tensor):
        return _from_array(image.detach().to("cpu", _numpy_type(image)).numpy(), channels_first=True)
    if isinstance(image, np.ndarray):
        return _from_array(image, channels_first=False)
    raise _refused(image)


def _numpy_type(image: Tensor) -> torch.dtype:
    """numpy has no bfloat16."""
    return torch.float32 if image.dtype == torch.bfloat16 else image.dtype


def _from_array(array: np.ndarray, channels_first: bool) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and (channels_first or (shape[0] in (1, 3, 4) and min(shape[1:]) > 4)):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if 0 in shape or (array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4))):
        wanted = "(3, H, W)" if channels_first else "(H, W, 3)"
        raise DoubleheadError(f"an image must be {wanted}, not of shape {shape}")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            mend = "divide it by 255" if low >= 0 and high <= 255 else "undo its normalisation"
            raise DoubleheadError(
                f"an image of floats must lie in 0..1, not in {low:.4g}..{high:.4g}: {mend}, or give uint8"
            )
        array = (array.astype(np.float64 if array.dtype == np.float64 else np.float32) * 255).round().astype(np.uint8)
    if array.dtype == np.uint16 and array.ndim == 2:
        return to_rgb(Image.fromarray(array))
    if array.dtype != np.uint8:
        raise DoubleheadError(f"an image must be uint8, or float in 0..1, not {array.dtype}: convert it")
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _fetched(address: str) -> bytes:
    """The bytes of a file on a server.

    Raises:
        DoubleheadError: the server cannot be reached or refuses, or the file is too large.
    """
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "doublehead"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            data = answer.read(LARGEST + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise DoubleheadError(f"{address}: could not be fetched ({error}); download it and give its path") from error
    if len(data) > LARGEST:
        raise DoubleheadError(f"{address}: is larger than {LARGEST >> 20} MiB; download it and give its path")
    return data


def _refused(image: Any) -> DoubleheadError:
    return DoubleheadError(f"{brief(image)} of type {type(image).__name__} is no image: give {TAKEN}")
