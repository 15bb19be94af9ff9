"""Checks of the data before training starts, which `doublehead check` also makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from doublehead.common.categories import require_same_classes
from doublehead.common.errors import DoubleheadError
from doublehead.common.threads import in_threads
from doublehead.config import SplitConfig
from doublehead.data.dataset import Dataset, open_dataset
from doublehead.data.images import Picture, image_size, read_picture
from doublehead.data.records import Record, Split


def read_for_training(
    path: str | Path | Dataset,
    train: str = "train",
    val: str | None = "val",
    shares: SplitConfig | None = None,
) -> tuple[Split, Split | None]:
    """Read the training and validation splits; the latter is None if the dataset has no such split.

    Args:
        path: dataset folder or YAML.
        train: name of the training split.
        val: name of the validation split; None: no validation.
        shares: how to split a dataset without splits; None: as the dataset says, else 80/10/10.

    Raises:
        DoubleheadError: the dataset or a split is invalid, or the splits are inconsistent.
    """
    dataset = path if isinstance(path, Dataset) else open_dataset(path, shares)
    split = dataset.read(train)
    measured = dataset.read(val) if val and dataset.has(val) else None
    if measured and measured.made and not measured.records:  # too few images to split
        measured = None
    require_trainable(dataset.path, split, measured)
    return split, measured


def require_trainable(path: str | Path, split: Split, val: Split | None) -> None:
    """Require that two valid splits can be used for training.

    Raises:
        DoubleheadError: the splits have different classes, or there are no boxes to train on.
    """
    if val is not None:
        require_same_classes(f"the splits {split.name} and {val.name}", split.categories, val.categories)
    if not any(len(record.training_boxes()[1]) for record in split.records):
        raise DoubleheadError(f"{path}: split `{split.name}` has no boxes to learn from")


def read_record(record: Record) -> Image.Image:
    """Read a record's image as RGB.

    Raises:
        DoubleheadError: the file cannot be read, or its size differs from the annotations.
    """
    return read_record_picture(record).rgb


def read_record_picture(record: Record) -> Picture:
    """As `read_record`, with properties of the original file."""
    picture = read_picture(record.path, record.encoded())
    _same_size(record, picture.rgb.size)
    return picture


def check_images(
    records: Sequence[Record],
    how: Literal["decode", "header", "none"] = "decode",
    progress: Callable[[], object] | None = None,
) -> None:
    """Check every image in parallel threads; `progress` is called once per image, in this thread.

    `decode` reads all pixels and detects truncated files; `header` is faster and detects missing files and wrong sizes.

    Raises:
        DoubleheadError: images are invalid; the message names the first and the number of others.
    """
    if how == "none":
        return

    def fault(record: Record) -> str | None:
        try:
            if how == "decode":
                read_record(record)
            else:
                _same_size(record, image_size(record.path, record.encoded()))
        except DoubleheadError as error:
            return str(error)
        return None

    faults = [found for found in in_threads(fault, records, progress) if found]
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
        message += "; restore the annotated image, or correct the size and the boxes"
    raise DoubleheadError(message, "images of another size than annotated")
