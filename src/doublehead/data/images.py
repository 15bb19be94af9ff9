"""Any image file, or any PIL image a user hands over, to the RGB that people see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from doublehead.common.errors import DoubleheadError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2",),
}
"""Pillow's names of the formats that are read, whatever a file is called, and their suffixes.

Pillow hands PostScript to Ghostscript, which runs programs: a format that is not listed never reaches its decoder.
"""
if find_spec("PIL.AvifImagePlugin"):  # Pillow 11.3 and later
    FORMATS["AVIF"] = (".avif",)

IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_ORIENTATION = 0x0112  # the EXIF tag; its values 5..8 exchange width and height


@dataclass(frozen=True)
class Picture:
    """A decoded image file, and what it was before."""

    rgb: Image.Image  # 8 bits a channel, turned upright as its EXIF orientation says
    mode: str  # Pillow's name for its colours: RGB, L, CMYK ...
    orientation: int  # of EXIF, 1: upright
    several: bool  # frames or pages, of which the first is read


def open_image(source: Path | str | BytesIO, formats: Iterable[str] = FORMATS) -> Image.Image:
    """Open an image file, its header read and its pixels not yet decoded. All files are opened here.

    Args:
        source: the file, or its bytes.
        formats: keys of FORMATS; no other decoder sees the file.

    Raises:
        Exception: as `PIL.Image.open`; `unreadable` puts it in a sentence.
    """
    return Image.open(source, formats=[name.upper() for name in formats])


def read_picture(path: Path | str, data: bytes | None = None) -> Picture:
    """Read an image file.

    Args:
        path: where it is.
        data: its bytes, if they have been read already; `path` then only names it.

    Raises:
        DoubleheadError: the file is missing, damaged, cut short, no image, or larger than Pillow's pixel limit (about
            179 million pixels).
    """
    try:
        with open_image(path if data is None else BytesIO(data)) as image:
            several = image.format != "MPO" and getattr(image, "is_animated", False)  # MPO: a photo with its preview
            orientation = image.getexif().get(_ORIENTATION, 1)
            return Picture(to_rgb(image), image.mode, orientation, several)
    except Exception as error:  # decoders raise nearly anything on damaged bytes: whatever it is, the file is at fault
        raise unreadable(path, error) from error


def read_image(path: Path | str, data: bytes | None = None) -> Image.Image:
    """Read an image file, or its bytes, as RGB, 8 bits a channel, upright.

    Raises:
        DoubleheadError: as `read_picture`.
    """
    return read_picture(path, data).rgb


def image_size(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """Width and height in pixels after EXIF orientation; the pixels of a JPEG are not decoded.

    Args:
        path: where the file is.
        data: its bytes, if they have been read already; `path` then only names it.

    Raises:
        DoubleheadError: the file is missing or its header is no image's.
    """
    try:
        with open_image(path if data is None else BytesIO(data)) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)
    except Exception as error:
        raise unreadable(path, error) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a PIL image of any mode upright and into RGB.

    Transparent pixels are laid on white, as on a page: what lies hidden under alpha 0 is often black or noise,
    and would be new to a person who looks at the picture. 16-bit grey is scaled by 1/257, so 65535 becomes 255.

    Raises:
        DoubleheadError: 32-bit values whose range nobody can know.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _from_wide(image).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow converts it to LA only
            image = image.convert("LA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as a uint8 tensor (3, height, width).

    NumPy copies the pixels: in a thread that decodes, torch would start OpenMP threads, which slow down the model's
    (`common.threads.apart`).
    """
    import torch  # here: `check` reads images without it

    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def _from_wide(image: Image.Image) -> Image.Image:
    """16-bit grey (also where Pillow hands it over as 32-bit integers) to 8 bits; plain conversion would clip."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DoubleheadError(f"has 32-bit values (mode {image.mode}) of unknown range: save it with 8 or 16 bits")
    return Image.fromarray(eight_bits(values))


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Whole numbers of 16 bits divided by 257 and rounded: 65535 becomes 255."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def unreadable(path: Path | str, error: Exception) -> DoubleheadError:
    """The error of a decoder or the disk on an image file, as one sentence with the fix."""
    if isinstance(error, FileNotFoundError):
        return DoubleheadError(f"{path}: there is no such image file", "images missing")
    if isinstance(error, DoubleheadError):
        return DoubleheadError(f"{path}: {error}", "images with 32-bit values")
    if isinstance(error, Image.UnidentifiedImageError):
        return DoubleheadError(
            f"{path}: is not an image that can be read ({', '.join(FORMATS)}); convert or remove the file",
            "files that are not images",
        )
    if isinstance(error, Image.DecompressionBombError):
        return DoubleheadError(
            f"{path}: has more pixels than Pillow's limit; scale it down or cut it into tiles", "images too large"
        )
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    return DoubleheadError(
        f"{path}: is damaged or cut short ({cause}); replace or remove the file", "images damaged or cut short"
    )
