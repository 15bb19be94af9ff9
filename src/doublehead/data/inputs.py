"""Conversion of any kind of image input to RGB images."""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from doublehead.common.errors import DoubleheadError, Fault, brief
from doublehead.data.images import eight_bits, read_image, to_rgb, unreadable

ImageLike = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray | Tensor
"""One image: a path, an http(s) URL, the bytes of a file, an open file, a PIL image, an array or a tensor.

Arrays and tensors are (H, W), (H, W, channels) or (channels, H, W): grey, RGB or RGBA; uint8, uint16 or float in 0..1.
"""

SECONDS = 30.0
"""Maximum seconds without a response while downloading an image, and for the whole download."""

MEGABYTES = 100
"""Maximum size of a download."""

CHANNELS = (1, 3, 4)

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # not C://, a drive


def as_images(images: ImageLike | Iterable[ImageLike]) -> tuple[Iterable[Any], bool]:
    """Convert the input of `predict` to an iterable of images, and return whether it was a single image.

    Batches (N, 3, H, W) or (N, H, W, 3) and other collections are several images, even if they contain one.

    Raises:
        DoubleheadError: the input is None, a mapping or a number.
    """
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or hasattr(images, "read"):
        return [images], True
    if hasattr(images, "__array__"):
        array = images if isinstance(images, Tensor) else np.asarray(images)
        if array.ndim == 4 or (array.ndim == 1 and not isinstance(array, Tensor) and array.dtype.kind in "OSU"):
            return list(array), False
        return [array.item() if array.ndim == 0 else array], True
    if isinstance(images, Iterable) and not isinstance(images, Mapping):
        return images, False
    return [images], True  # which `as_picture` refuses


def as_picture(image: Any, name: str = "the image") -> Image.Image:
    """Convert an image of any kind to a PIL image in RGB.

    Args:
        image: see ImageLike.
        name: name for error messages, if the image has none.

    Raises:
        DoubleheadError: the input cannot be read or is not an image.
        Fault: a server does not respond.
    """
    if isinstance(image, str) and _ADDRESS.match(image):
        return read_image(_short(image), _fetch(image))
    if isinstance(image, str | os.PathLike):
        return _from_path(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return read_image(name, bytes(image))
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except Exception as error:  # Pillow decodes only now, and decoders raise nearly anything
            raise unreadable(getattr(image, "filename", "") or name, error) from error
    if hasattr(image, "read"):
        return _from_file(image, name)
    if hasattr(image, "__array__"):
        return to_rgb(Image.fromarray(_as_uint8(_channels_last(image, name), name)))
    raise DoubleheadError(f"{name}: {_what(image)} was given; give {_WANTED}")


_WANTED = "a path, an http(s) address, bytes, an open file, a PIL image, an array or a tensor, or a flat list of these"


def _what(image: Any) -> str:
    """Something that is no image, for a sentence."""
    if image is None:
        return "None"
    if isinstance(image, Mapping):
        return f"a mapping with the keys {brief(list(image))}"
    return f"a {type(image).__name__}"


def _from_path(image: str | os.PathLike[str]) -> Image.Image:
    path = Path(os.fsdecode(image))
    if os.path.isdir(path):  # False where the name is too long for any file
        raise DoubleheadError(
            f"{path}: is a folder; give its files, such as sorted(pathlib.Path({str(path)!r}).glob('*.jpg')), or run "
            "`doublehead predict` on it"
        )
    return read_image(path)


def _from_file(file: Any, name: str) -> Image.Image:
    """An open file from its beginning, as Pillow reads it; or from where it is, if it cannot go back."""
    name = str(getattr(file, "name", name))
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise DoubleheadError(f"{name}: cannot be read ({error}); give an open file or its path") from error
    if not isinstance(data, bytes):
        raise DoubleheadError(
            f"{name}: gives {type(data).__name__}, not bytes; open it with mode 'rb' or give its path"
        )
    return read_image(name, data)


def _channels_last(image: Any, name: str) -> np.ndarray:
    """An array or a tensor as (H, W) or (H, W, channels)."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.float() if image.dtype == torch.bfloat16 else image  # which numpy does not have
    array = np.asarray(image)
    shape = array.shape
    if array.ndim == 3:
        usual, other = array, array.transpose(1, 2, 0)
        if isinstance(image, Tensor):
            usual, other = other, usual
        unusual = (
            usual.shape[2] not in CHANNELS and other.shape[2] in CHANNELS and other.shape[2] < min(other.shape[:2])
        )
        array = other if unusual else usual
        array = array[:, :, 0] if array.shape[2] == 1 else array
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        wanted = "(3, H, W)" if isinstance(image, Tensor) else "(H, W, 3)"
        raise DoubleheadError(
            f"{name}: an image must be {wanted}, not of shape {shape}; grey and RGBA are accepted too"
        )
    return array


def _as_uint8(array: np.ndarray, name: str) -> np.ndarray:
    """Values of 8 or 16 bits, or floats in 0..1, as uint8 in memory order."""
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise DoubleheadError(f"{name}: an image of floats must lie in 0..1, but {_remedy(low, high)}")
        array = (array * 255).round()
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = eight_bits(array)
    elif array.dtype != np.uint8:
        raise DoubleheadError(
            f"{name}: an image must be uint8 or float, not {array.dtype}; if its values lie in 0..255, convert it to "
            "uint8"
        )
    return np.ascontiguousarray(array, np.uint8)


def _remedy(low: float, high: float) -> str:
    """What floats lie in, and what to do with them."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return "this one holds values that are not finite; replace them"
    said = f"this one lies in {low:.4g}..{high:.4g}"
    if low >= 0 and high <= 255:
        return f"{said}: divide it by 255, or give uint8 for 0..255"
    if low >= -1 and high <= 1:
        return f"{said}: if it was scaled to -1..1, give (image + 1) / 2"
    return f"{said}: undo its normalisation, or give the file itself; the model normalises images itself"


def _fetch(address: str) -> bytes:
    """What an http(s) address answers.

    Raises:
        DoubleheadError: another kind of address, a refusal, or too much.
        Fault: no answer in time.
    """
    name = _short(address)
    if address.partition(":")[0].lower() not in ("http", "https"):
        raise DoubleheadError(f"{name}: only http and https are fetched; download the file and give its path")
    end, found = time.monotonic() + SECONDS, BytesIO()
    try:
        quoted = quote(address, safe="%/:?&=#[]@!$'()*+,;~")  # as browsers do with blanks and umlauts
        request = urllib.request.Request(quoted, headers={"User-Agent": "doublehead"})
        with _OPENER.open(request, timeout=SECONDS) as answer:
            while part := answer.read1(2**16):
                found.write(part)
                if found.tell() > MEGABYTES * 1e6:
                    raise DoubleheadError(f"{name}: is larger than {MEGABYTES} MB; download it and give its path")
                if time.monotonic() > end:
                    raise TimeoutError(f"took more than {SECONDS:g} seconds")
    except HTTPError as error:
        raise DoubleheadError(f"{name}: answered {error.code} ({error.reason}); correct the address") from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: no host, or characters that no address has
        cause = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise Fault(f"{name}: cannot be fetched ({cause}); check the address and the network") from error
    return found.getvalue()


def _short(address: str) -> str:
    """An address without its query, which may hold a key."""
    return address.partition("?")[0]


class _HTTPOnly(urllib.request.HTTPRedirectHandler):
    """Redirects that stay with http and https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme.lower() not in ("http", "https"):
            raise ValueError(f"a redirect leads to {urlsplit(newurl).scheme}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_HTTPOnly)
