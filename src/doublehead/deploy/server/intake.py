"""Parsing and validation of the images in a request."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from torch import Tensor

from doublehead.common.errors import printable
from doublehead.data.images import open_image, to_rgb, to_tensor, unreadable
from doublehead.deploy.server.refusals import Refused

FIELD = "images"
"""The multipart field that carries them."""


@dataclass(frozen=True)
class Sent:
    """One image as it came."""

    name: str
    data: bytes


class _InMemory(MultiPartParser):
    """starlette's, writing nothing to the disk: the body's size is limited as it is."""

    spool_max_size = 2**40


async def read_images(request: Request, most: int) -> list[Sent]:
    """The images of a request: its whole body, or the files of its multipart field `images`.

    Raises:
        Refused: there is none, there are too many, or the body is of another kind.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = await _of_form(request, most)
    elif kind.startswith("image/") or kind in ("", "application/octet-stream"):
        images = [Sent("the image", await request.body())]
    else:
        raise Refused(
            415,
            "unsupported_body",
            f"a body of type {kind[:80]} is not taken: send files as multipart/form-data in the field `{FIELD}`, or "
            "the bytes of one image as image/jpeg or application/octet-stream",
        )
    if not images:
        raise Refused(400, "no_image", f"the request holds no image; send one or more in the field `{FIELD}`")
    for image in images:
        if not image.data:
            raise Refused(400, "no_image", f"{image.name}: is empty")
    return images


async def _of_form(request: Request, most: int) -> list[Sent]:
    try:
        form = await _InMemory(request.headers, request.stream(), max_files=most, max_fields=0).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Refused(413, "too_many_images", f"a request may have {most} images; send the others apart") from error
        raise Refused(
            400, "bad_form", f"the multipart body cannot be read: {error.message} Send files, in the field `{FIELD}`"
        ) from error
    except (KeyError, ValueError) as error:  # a boundary or a character set that is none
        raise Refused(400, "bad_form", f"the multipart body cannot be read ({error})") from error
    images = []
    for number, (field, file) in enumerate(form.multi_items(), 1):
        if field != FIELD or not isinstance(file, UploadFile):
            raise Refused(400, "bad_form", f"the form has a part `{field[:80]}`; files belong into the field `{FIELD}`")
        images.append(Sent(printable(file.filename or "")[:200] or f"image {number}", await file.read()))
    return images


def count_pixels(images: Iterable[Sent], formats: Iterable[str], most: int) -> int:
    """Count the pixels of all images from their headers, without decoding.

    Raises:
        Refused: a file is not an image in an accepted format, or there are too many pixels.
    """
    pixels = 0
    for image in images:
        with _opened(image, formats) as picture:
            pixels += math.prod(picture.size)
    if pixels > most:
        raise _too_many_pixels(most)
    return pixels


def decode(image: Sent, formats: Iterable[str]) -> Tensor:
    """Decode an image to RGB uint8 (3, H, W), upright.

    Raises:
        Refused: the image is damaged.
    """
    try:
        with _opened(image, formats) as picture:
            return to_tensor(to_rgb(picture))
    except Refused:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes: whatever it is, the image is at fault
        raise Refused(400, "damaged", str(unreadable(image.name, error))) from error


def _opened(image: Sent, formats: Iterable[str]) -> Image.Image:
    """The image with its header read. No other decoders than those of the formats ever see it."""
    try:
        return open_image(io.BytesIO(image.data), formats)
    except Image.UnidentifiedImageError as error:
        taken = ", ".join(formats).upper()
        raise Refused(
            415, "unsupported_image", f"{image.name}: is not an image of an accepted format ({taken})"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(413, "too_many_pixels", str(unreadable(image.name, error))) from error
    except Exception as error:
        raise Refused(400, "damaged", str(unreadable(image.name, error))) from error


def _too_many_pixels(most: int) -> Refused:
    return Refused(
        413, "too_many_pixels", f"the images of a request may have {most} pixels together; send fewer or smaller ones"
    )
