"""Every image looked at before training starts, so that hour three brings no surprise."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from PIL import Image

from doublehead.data.images import image_size, read_image
from doublehead.data.records import Record
from doublehead.errors import DoubleheadError


def read_record(record: Record) -> Image.Image:
    """Read a record's image as RGB.

    Raises:
        DoubleheadError: the file cannot be read, or its size is not the annotations' size.
    """
    image = read_image(record.path)
    _same_size(record, image.size)
    return image


def check_images(
    records: Sequence[Record],
    how: Literal["decode", "header", "none"] = "decode",
    progress: Callable[[], object] | None = None,
) -> None:
    """Look at every image in parallel threads; `progress` is called once per image, in this thread.

    `decode` reads all pixels and so finds files cut short; `header` is faster and finds missing files and wrong sizes.

    Raises:
        DoubleheadError: names the first image at fault and how many more there are.
    """
    if how == "none":
        return

    def fault(record: Record) -> str | None:
        try:
            if how == "decode":
                read_record(record)
            else:
                _same_size(record, image_size(record.path))
        except DoubleheadError as error:
            return str(error)
        return None

    faults = []
    executor = ThreadPoolExecutor(os.cpu_count())  # decoders release the GIL
    try:
        for found in executor.map(fault, records):
            faults += [found] if found else []
            if progress:
                progress()
    finally:
        executor.shutdown(cancel_futures=True)  # or Ctrl-C would wait for all the rest
    if faults:
        more = f" (and {len(faults) - 1} more of {len(records)} images have a fault)" if len(faults) > 1 else ""
        raise DoubleheadError(f"{faults[0]}{more}")


def _same_size(record: Record, size: tuple[int, int]) -> None:
    width, height = size
    if (width, height) == (record.width, record.height):
        return
    message = f"{record.path}: is {width}x{height}, but the annotations say {record.width}x{record.height}"
    if (height, width) == (record.width, record.height):
        message += "; they were likely drawn before its EXIF orientation turned it: turn the file or the annotations"
    else:
        message += "; put back the image that was annotated, or mend the size and the boxes"
    raise DoubleheadError(message)
