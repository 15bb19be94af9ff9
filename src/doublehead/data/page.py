"""What `check` found as one HTML file: counts, histograms, and a gallery of the suspects."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from doublehead.common.errors import DoubleheadError
from doublehead.common.pages.pages import jpeg, render
from doublehead.data.advice import Advice, Bin
from doublehead.data.images import read_image
from doublehead.data.inspection import Inspection
from doublehead.data.records import Box, Finding, Place, Record, Split
from doublehead.data.suspects import class_counts
from doublehead.inference.detections import draw_boxes

SHOWN = 12  # suspects of each kind and split
_LONG_SIDE = 360  # pixels of a picture in the gallery
_GAP = 6  # pixels between two pictures to compare
_LINES = 24  # of a histogram
_STEPS = (0, 1, 2, 3, 5, 9, 17, 33, 65, 129)  # ranges of the number of boxes in an image begin here
_SMALLEST = 10  # pixels of the frame about a suspect box, so that one without area is seen


@dataclass(frozen=True)
class _Shown:
    """One kind of finding in one split, as the page shows it."""

    level: str  # error or warning
    split: str  # "": the dataset as a whole
    kind: str
    count: int
    example: str
    pictures: list[tuple[str, str]]  # URI and caption
    texts: list[str]  # places without a picture
    pairs: bool  # whether pictures show two images each

    @property
    def shown(self) -> int:
        return len(self.pictures) + len(self.texts)


@dataclass(frozen=True)
class _Bar:
    """One line of a histogram: of each split a count, and its share of the split's largest."""

    label: str
    counts: list[int]
    shares: list[float]


@dataclass(frozen=True)
class _Histogram:
    title: str
    rows: list[_Bar]
    left_out: int = 0  # keys that are not shown


def write_page(inspection: Inspection, folder: Path) -> Path:
    """Write `index.html` into a folder, made where it is missing; the page needs no other file.

    Returns:
        The page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.write_text(_page(inspection), encoding="utf-8", errors="replace")
    return page


def _page(inspection: Inspection) -> str:
    records = {record.path: record for split in inspection.splits for record in split.records}
    return render(
        "data/page.html",
        path=str(inspection.path),
        verdict=inspection.verdict,
        failed=inspection.errors > 0,
        splits=[(split.name, _figures(split)) for split in inspection.splits],
        found=[_shown(split, finding, records) for split, finding in inspection.rows],
        histograms=_histograms(inspection.splits),
        advice=inspection.advice,
        command=inspection.advice and inspection.advice.command(str(inspection.path)),
        against_anchors=_against_anchors(inspection.advice) if inspection.advice else [],
        note=inspection.note,
    )


def _figures(split: Split) -> list[int]:
    """Images, images without boxes, boxes, crowds, classes."""
    boxes = int(class_counts(split).sum())
    crowds = sum(int(record.crowd.sum()) for record in split.records)
    empty = sum(not len(record.boxes) for record in split.records)
    return [len(split.records), empty, boxes, crowds, len(split.categories)]


def _histograms(splits: Sequence[Split]) -> list[_Histogram]:
    classes = [
        Counter(dict(zip(split.categories.names, class_counts(split).tolist(), strict=True))) for split in splits
    ]
    sides = [Counter(_octave(side) for record in split.records for side in _sides(record)) for split in splits]
    in_images = [Counter(_range(len(record.boxes)) for record in split.records) for split in splits]
    sizes = [Counter(f"{record.width} x {record.height}" for record in split.records) for split in splits]
    return [
        _most("Boxes of each class", classes),
        _rising("Side of the boxes (root of the area), pixels", sides),
        _rising("Boxes in an image", in_images),
        _most("Size of the images", sizes),
    ]


def _against_anchors(advice: Advice) -> list[_Histogram]:
    """Sizes and shapes of the training boxes, and which of them no anchor reaches."""
    titles = {
        f"Side of the boxes at short side {advice.short_side}, pixels": advice.sides,
        "Aspect ratio of the boxes, height / width": advice.shapes,
    }
    return [_Histogram(title, _bars_of_bins(bins)) for title, bins in titles.items()]


def _bars_of_bins(bins: Sequence[Bin]) -> list[_Bar]:
    most = max((each.boxes for each in bins), default=0) or 1
    rows = []
    for each in bins:
        counts = [each.boxes, each.unreached]
        label = f"{_short(each.low)} to {_short(each.high)}{' *' if each.anchors else ''}"
        rows.append(_Bar(label, counts, [count / most for count in counts]))
    return rows


def _short(number: float) -> str:
    """Whole from 8 on, and else with two digits."""
    return f"{number:.0f}" if number >= 8 else f"{number:.2g}"


def _shown(split: str, finding: Finding, records: dict[Path, Record]) -> _Shown:
    """A finding with the pictures of its first places; places without a picture in words."""
    pictures, texts = [], []
    for place in _first(finding):
        picture = _picture(place, records)
        if picture:
            pictures.append((picture, place.text))
        else:
            texts.append(place.text)
    level = "error" if finding.error else "warning"
    pairs = any(place.beside for place in finding.places)
    return _Shown(level, split, finding.kind, finding.count, finding.places[0].text, pictures, texts, pairs)


def _first(finding: Finding) -> list[Place]:
    """Places to show: those of different images first."""
    seen: dict[Path | None, Place] = {}
    for place in finding.places:
        seen.setdefault(place.image, place)
    chosen = list(seen.values()) if None not in seen else finding.places
    others = [place for place in finding.places if place not in chosen] if len(chosen) < SHOWN else []
    return [*chosen, *others][:SHOWN]


def _picture(place: Place, records: dict[Path, Record]) -> str | None:
    """The image of a place, beside the one to compare it with if there is one; None where it cannot be read."""
    paths = [path for path in (place.image, place.beside) if path]
    drawn = [_drawn(path, records.get(path), place.box if path == place.image else None) for path in paths]
    images = [image for image in drawn if image]
    if not images:
        return None
    height = max(image.height for image in images)
    both = Image.new("RGB", (sum(image.width + _GAP for image in images) - _GAP, height), "white")
    left = 0
    for image in images:
        both.paste(image, (left, 0))
        left += image.width + _GAP
    return jpeg(both)


def _drawn(path: Path, record: Record | None, box: Box | None) -> Image.Image | None:
    """An image with its boxes, and a red frame about the one that is meant; None where it cannot be read."""
    try:
        image = read_image(path, record.encoded() if record else None)
    except DoubleheadError:
        return None
    width, height = image.size
    image = image.resize([max(1, round(side * _LONG_SIDE / max(width, height))) for side in (width, height)])
    scale = np.array([image.width / width, image.height / height] * 2)
    if record is not None and (record.width, record.height) == (width, height):
        image = draw_boxes(image, record.boxes * scale, record.labels)
    if box is not None:
        _frame(image, np.array(box) * scale)
    return image


def _frame(image: Image.Image, box: np.ndarray) -> None:
    """A red frame with a white edge, inside the picture and never too small to see."""
    limit = np.array([image.width - 1, image.height - 1])
    first, last = np.sort(box.reshape(2, 2), axis=0)
    grow = (_SMALLEST - (last - first)).clip(0) / 2
    first, last = (first - grow).clip(0, limit), (last + grow).clip(0, limit)
    pen = ImageDraw.Draw(image)
    pen.rectangle((*(first - 1), *(last + 1)), outline="white", width=5)
    pen.rectangle((*first, *last), outline="#e0241b", width=3)


def _most(title: str, counts: Sequence[Counter[str]]) -> _Histogram:
    """A histogram of the commonest keys."""
    total = Counter[str]()
    for count in counts:
        total.update(count)
    keys = [key for key, _ in total.most_common(_LINES)]
    return _Histogram(title, _bars(keys, counts), len(total) - len(keys))


def _rising(title: str, counts: Sequence[Counter[str]]) -> _Histogram:
    """A histogram of all keys, by the number they begin with."""
    return _Histogram(title, _bars(sorted(set().union(*counts), key=lambda key: int(key.split()[0])), counts))


def _bars(keys: Sequence[str], counts: Sequence[Counter[str]]) -> list[_Bar]:
    longest = [max((count[key] for key in keys), default=0) or 1 for count in counts]
    return [
        _Bar(key, [count[key] for count in counts], [c[key] / most for c, most in zip(counts, longest, strict=True)])
        for key in keys
    ]


def _sides(record: Record) -> np.ndarray:
    """The root of each box's area in pixels, inside the image, crowds left out; (M,) float32."""
    boxes, _ = record.training_boxes()
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _octave(side: float) -> str:
    """The range between two powers of 2 in which a side lies."""
    low = 2 ** int(np.floor(np.log2(max(side, 1))))
    return f"{low} to {2 * low}"


def _range(count: int) -> str:
    """The range in which a number of boxes lies."""
    for low, high in itertools.pairwise(_STEPS):
        if count < high:
            return f"{low}" if high == low + 1 else f"{low} to {high - 1}"
    return f"{_STEPS[-1]} or more"
