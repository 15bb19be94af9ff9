"""Contact sheet of training images: each original, and its augmented versions in several epochs, with boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from doublehead.common.errors import DoubleheadError
from doublehead.common.files import whole
from doublehead.common.pages.pages import jpeg, render
from doublehead.config import Config
from doublehead.data.dataset import Dataset, open_dataset
from doublehead.data.loader import DetectionDataset, Key, training_dataset
from doublehead.data.records import Split
from doublehead.data.transforms import InOrder, Sample, after
from doublehead.inference.detections import draw_boxes

_LONG_SIDE = 480  # pixels of a picture
_GAP = 8  # pixels between the pictures of a PNG
_LINE = 18  # pixels of its captions
_PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Shown:
    """One picture of the sheet, with its boxes drawn."""

    picture: Image.Image
    caption: str


@dataclass(frozen=True)
class Row:
    """One image: as it is, then once for each epoch."""

    name: str
    shown: list[Shown]


def contact_sheet(config: Config, page: Path, images: int = 6, epochs: int = 3, dataset: Dataset | None = None) -> Path:
    """Draw the augmented training images of a run with this config.

    Args:
        config: config of the run; `data.path` names the dataset.
        page: output file, .html, .png or .jpg; or a folder for `index.html`.
        images: number of images, evenly spaced in the training split.
        epochs: number of epochs per image, starting with the first. `train.seed` changes the augmentation.
        dataset: dataset to use instead of the one at `data.path`.

    Returns:
        The file written.

    Raises:
        DoubleheadError: the data or a step is invalid.
    """
    page = page if page.suffix.lower() in (".html", ".htm", *_PICTURES) else page / "index.html"
    split = (dataset or open_dataset(config.data.path, config.data.split)).read(config.data.train_split).sound()
    if not split.records:
        raise DoubleheadError(f"{config.data.path}: split `{split.name}` holds no images")
    rows = list(_rows(training_dataset(split, config), split, images, epochs))
    page.parent.mkdir(parents=True, exist_ok=True)
    with whole(page) as file:
        if page.suffix.lower() in _PICTURES:
            _montage(rows).save(file, format="PNG" if page.suffix.lower() == ".png" else "JPEG")
        else:
            file.write_text(_page(rows, split, config), encoding="utf-8", errors="replace")
    return page


def _rows(dataset: DetectionDataset, split: Split, images: int, epochs: int) -> Iterator[Row]:
    places = np.linspace(0, len(split.records) - 1, min(images, len(split.records))).round().astype(int).tolist()
    for index in places:
        original = dataset.samples[index]
        shown = [_shown(original, split, "as it is")]
        for epoch in range(epochs):
            sample, steps = _augmented(dataset, Key(epoch, index))
            shown.append(_shown(sample, split, f"epoch {epoch + 1}: {', '.join(steps) or 'unchanged'}"))
        yield Row(split.records[index].path.name, shown)


def _augmented(dataset: DetectionDataset, key: Key) -> tuple[Sample, list[str]]:
    """An image as training sees it, and the names of the steps that changed it."""
    transform = dataset.transform
    assert isinstance(transform, InOrder)
    acted = []
    with dataset.drawing(key.epoch, key.record):
        sample = dataset.samples[key.record]
        for name, step in transform.steps:
            before, sample = sample, after(name, step, sample, dataset.samples)
            if sample[0].shape != before[0].shape or not torch.equal(sample[0], before[0]):
                acted.append(name)
        return transform.finished(sample), acted


def _shown(sample: Sample, split: Split, caption: str) -> Shown:
    image, boxes, labels = sample
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    scale = _LONG_SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    drawn = boxes.as_subclass(torch.Tensor).numpy() * np.array([size[0] / picture.width, size[1] / picture.height] * 2)
    names = [split.categories.names[label - 1] for label in labels.tolist()]
    text = f"{caption} ({picture.width} x {picture.height})"
    return Shown(draw_boxes(picture.resize(size), drawn, labels.numpy(), names), text)


def _page(rows: Sequence[Row], split: Split, config: Config) -> str:
    return render(
        "data/sheet.html",
        path=config.data.path,
        split=split.name,
        count=len(split.records),
        steps=[(step.name, step.settings.model_dump(mode="json")) for step in config.data.augment.steps],
        rows=[(row.name, [(jpeg(each.picture), each.caption) for each in row.shown]) for row in rows],
    )


def _montage(rows: Sequence[Row]) -> Image.Image:
    """All pictures in one, a row of it for each image, with their captions."""
    cell = _LONG_SIDE + _GAP
    heights = [max(each.picture.height for each in row.shown) + 2 * _LINE + _GAP for row in rows]
    canvas = Image.new("RGB", (cell * max(len(row.shown) for row in rows) + _GAP, sum(heights) + _GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LINE - 6)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        pen.text((_GAP, top), row.name, "black", font)
        for column, each in enumerate(row.shown):
            left = _GAP + column * cell
            canvas.paste(each.picture, (left, top + 2 * _LINE))
            words = each.caption
            while font.getlength(words) > _LONG_SIDE:
                words = words[:-2] + "…"
            pen.text((left, top + _LINE), words, "black", font)
        top += height
    return canvas
