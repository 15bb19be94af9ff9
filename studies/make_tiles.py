"""Cut the images of a dataset into square tiles: a few large images become many that can be trained and tested on.

    python studies/make_tiles.py yellowstone trees --side 400

An object belongs to a tile that shows at least half of it. What shows less of an object is a crowd there: left out of
training, and neither right nor wrong in evaluation. Tiles do not overlap; those at the right and lower edge may be
smaller.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.data.images import read_image
from doublehead.data.records import Record, Split
from doublehead.data.to_coco import write_splits

VISIBLE = 0.5  # share of an object that a tile must show


@dataclass(frozen=True)
class Tile:
    """A part of an image, as PNG."""

    pixels: Image.Image

    def read(self) -> bytes:
        """The file's bytes."""
        file = io.BytesIO()
        self.pixels.save(file, "PNG")
        return file.getvalue()


def tiles(record: Record, side: int) -> Iterator[Record]:
    """The tiles of an image, with what each shows of its objects."""
    image = read_image(record.path, record.encoded())
    for y in range(0, record.height, side):
        for x in range(0, record.width, side):
            width, height = min(side, record.width - x), min(side, record.height - y)
            corner, limit = np.array([x, y, x, y]), np.array([width, height, width, height])
            boxes = np.clip(record.boxes - corner, 0, limit)
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
            share = areas / np.maximum((record.boxes[:, 2:] - record.boxes[:, :2]).prod(1), 1e-9)
            shown = areas > 0
            crowd = (record.crowd | (share < VISIBLE))[shown]
            path = record.path.with_name(f"{record.path.stem}_{x}_{y}.png")
            size = (width, height)
            found, labels = boxes[shown].tolist(), record.labels[shown].tolist()
            yield Record.of(
                0, path, size, found, labels, crowd.tolist(), content=Tile(image.crop((x, y, x + width, y + height)))
            )


def cut(split: Split, side: int) -> Split:
    """A split of tiles, with ids from 1."""
    found = [tile for record in split.records for tile in tiles(record, side)]
    return replace(split, records=[replace(tile, image_id=number) for number, tile in enumerate(found, 1)])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="The dataset's folder or YAML.")
    parser.add_argument("output", type=Path, help="A new folder.")
    parser.add_argument("--side", type=int, default=400, help="Pixels of a tile's sides.")
    words = parser.parse_args()
    if words.side < 1:
        parser.error(f"--side must be at least 1, not {words.side}")
    try:
        dataset = open_dataset(words.data)
        names = ["all"] if dataset.whole else dataset.distinct
        splits = [cut(replace(dataset.read(name), name=name), words.side) for name in names]
        write_splits(splits, words.output)
    except DoubleheadError as error:
        sys.exit(f"error: {error}")
    for split in splits:
        boxes = sum(int((~record.crowd).sum()) for record in split.records)
        print(f"{split.name}: {len(split.records)} tiles, {boxes} objects")


if __name__ == "__main__":
    main()
