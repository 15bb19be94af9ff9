"""What `check` found as one HTML file: counts, histograms, and a gallery of the suspects."""

from __future__ import annotations

import base64
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from doublehead.common.errors import DoubleheadError
from doublehead.data.images import read_image
from doublehead.data.inspection import Inspection
from doublehead.data.records import Finding, Place, Record, Split
from doublehead.data.suspects import class_counts
from doublehead.inference.detections import draw_boxes

SHOWN = 12  # suspects of each kind and split
_LONG_SIDE = 360  # pixels of a picture in the gallery
_LINES = 24  # of a histogram
_STEPS = (0, 1, 2, 3, 5, 9, 17, 33, 65, 129)  # ranges of the number of boxes in an image begin here
_SMALLEST = 10  # pixels of the frame about a suspect box, so that one without area is seen

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; background: #f6f7f9; margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 10px; }
h3 { font-size: 15px; margin: 22px 0 8px; }
.panel h3 { margin-top: 0; }
.verdict { font-size: 16px; margin: 6px 0 18px; }
.panel { background: #fff; border: 1px solid #e1e4ea; border-radius: 8px; padding: 14px 18px; }
.panels { columns: 2 440px; column-gap: 16px; }
.panels .panel { break-inside: avoid; margin-bottom: 16px; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: #5a6372; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid #eceef2; vertical-align: top; }
tr:last-child td { border-bottom: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.error { color: #b3261e; font-weight: 600; }
.warning { color: #8a5a00; font-weight: 600; }
.text { color: #5a6372; overflow-wrap: anywhere; }
.bars { table-layout: fixed; }
.bars td { border: 0; padding: 1px 8px 1px 0; vertical-align: middle; }
.bars .label { width: 30%; overflow-wrap: anywhere; }
.bars .bar { width: 40%; }
.bar div { height: 11px; border-radius: 2px; margin: 1px 0; min-width: 1px; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px 0 14px; }
ul.panel { margin: 8px 0; padding-left: 34px; }
.gallery { margin: 8px 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 12px; }
figure { margin: 0; background: #fff; border: 1px solid #e1e4ea; border-radius: 8px; overflow: hidden; }
figure img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: #20242c; }
figcaption { padding: 6px 10px 8px; font-size: 13px; overflow-wrap: anywhere; }
a { color: inherit; }
"""
_COLOURS = ("#2f6fde", "#e08a1e", "#3a9a5b", "#8b5fbf", "#c2455f", "#4a5568")


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
    name = escape(str(inspection.path))
    level = "error" if inspection.errors else ""
    histograms = _histograms(inspection.splits) if inspection.splits else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>check of {name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><main>'
        f'<h1>{name}</h1><p class="verdict {level}">{escape(inspection.verdict)}</p>'
        f"{_splits(inspection.splits)}{_findings(inspection)}{histograms}{_gallery(inspection)}</main></html>"
    )


def _splits(splits: Sequence[Split]) -> str:
    rows = []
    for split in splits:
        boxes = int(class_counts(split).sum())
        crowds = sum(int(record.crowd.sum()) for record in split.records)
        empty = sum(not len(record.boxes) for record in split.records)
        figures = (len(split.records), empty, boxes, crowds, len(split.categories))
        rows.append([escape(split.name), *(f"{figure:,}" for figure in figures)])
    titles = ("split", "images", "without boxes", "boxes", "crowds or difficult", "classes")
    return f'<div class="panel">{_table(titles, rows, numbers=range(1, 6))}</div>' if rows else ""


def _findings(inspection: Inspection) -> str:
    rows = []
    for number, (split, finding) in enumerate(inspection.rows):
        level = "error" if finding.error else "warning"
        kind = escape(finding.kind)
        rows.append(
            [
                f'<span class="{level}">{level}</span>',
                escape(split),
                f"{finding.count:,}",
                f'<a href="#f{number}">{kind}</a>',
                f'<span class="text">{escape(finding.places[0].text)}</span>',
            ]
        )
    if not rows:
        return ""
    table = _table(("", "split", "found", "what", "such as"), rows, numbers=(2,))
    return f'<h2>Found</h2><div class="panel">{table}</div>'


def _histograms(splits: Sequence[Split]) -> str:
    classes = [
        Counter(dict(zip(split.categories.names, class_counts(split).tolist(), strict=True))) for split in splits
    ]
    sides = [Counter(_octave(side) for record in split.records for side in _sides(record)) for split in splits]
    in_images = [Counter(_range(len(record.boxes)) for record in split.records) for split in splits]
    sizes = [Counter(f"{record.width} x {record.height}" for record in split.records) for split in splits]
    panels = (
        _bars("Boxes of each class", *_most(classes)),
        _bars("Side of the boxes (root of the area), pixels", _rising(sides), sides),
        _bars("Boxes in an image", _rising(in_images), in_images),
        _bars("Size of the images", *_most(sizes)),
    )
    key = "".join(
        f'<span class="key" style="background:{_colour(place)}"></span>{escape(split.name)}'
        for place, split in enumerate(splits)
    )
    return f'<h2>Histograms <small>{key}</small></h2><div class="panels">{"".join(panels)}</div>'


def _gallery(inspection: Inspection) -> str:
    records = {record.path: record for split in inspection.splits for record in split.records}
    parts = []
    for number, (split, finding) in enumerate(inspection.rows):
        shown = [_shown(place, records.get(place.image) if place.image else None) for place in _first(finding)]
        pictures, texts = ["".join(part) for part in zip(*shown, strict=True)] if shown else ("", "")
        if shown:
            more = f", {len(shown)} of {finding.count:,}" if finding.count > len(shown) else ""
            title = f"{escape(finding.kind)}{f' in {escape(split)}' if split else ''}{more}"
            parts.append(f'<h3 id="f{number}">{title}</h3>')
            parts.append(f'<div class="gallery">{pictures}</div>' if pictures else "")
            parts.append(f'<ul class="panel text">{texts}</ul>' if texts else "")
    return f"<h2>Looked at closely</h2>{''.join(parts)}" if parts else ""


def _first(finding: Finding) -> list[Place]:
    """Places to show: those of different images first."""
    seen: dict[Path | None, Place] = {}
    for place in finding.places:
        seen.setdefault(place.image, place)
    chosen = list(seen.values()) if None not in seen else finding.places
    others = [place for place in finding.places if place not in chosen] if len(chosen) < SHOWN else []
    return [*chosen, *others][:SHOWN]


def _shown(place: Place, record: Record | None) -> tuple[str, str]:
    """A figure and nothing, or nothing and a line where there is no picture."""
    picture, text = _picture(place, record), escape(place.text)
    return (f"<figure>{picture}<figcaption>{text}</figcaption></figure>", "") if picture else ("", f"<li>{text}</li>")


def _picture(place: Place, record: Record | None) -> str:
    """The image with its boxes, and a red frame about the one that is meant; nothing where it cannot be read."""
    if place.image is None:
        return ""
    try:
        image = read_image(place.image, record.encoded() if record else None)
    except DoubleheadError:
        return ""
    width, height = image.size
    image = image.resize([max(1, round(side * _LONG_SIDE / max(width, height))) for side in (width, height)])
    scale = np.array([image.width / width, image.height / height] * 2)
    if record is not None and (record.width, record.height) == (width, height):
        image = draw_boxes(image, record.boxes * scale, record.labels)
    if place.box is not None:
        _frame(image, np.array(place.box) * scale)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _frame(image: Image.Image, box: np.ndarray) -> None:
    """A red frame with a white edge, inside the picture and never too small to see."""
    limit = np.array([image.width - 1, image.height - 1])
    first, last = np.sort(box.reshape(2, 2), axis=0)
    grow = (_SMALLEST - (last - first)).clip(0) / 2
    first, last = (first - grow).clip(0, limit), (last + grow).clip(0, limit)
    pen = ImageDraw.Draw(image)
    pen.rectangle((*(first - 1), *(last + 1)), outline="white", width=5)
    pen.rectangle((*first, *last), outline="#e0241b", width=3)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
    kinds = [' class="n"' if place in set(numbers) else "" for place in range(len(titles))]
    head = "".join(f"<th{kind}>{title}</th>" for kind, title in zip(kinds, titles, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _bars(title: str, keys: Sequence[str], counts: Sequence[Counter[str]], of: int = 0) -> str:
    """A histogram: a line for each key, in it a bar for each split, as a share of the split's longest.

    `of` says how many keys there are where not all are shown.
    """
    longest = [max((count[key] for key in keys), default=0) or 1 for count in counts]
    rows = []
    for key in keys:
        bars = "".join(
            f'<div style="width:{100 * count[key] / most:.1f}%;background:{_colour(place)}"></div>'
            for place, (count, most) in enumerate(zip(counts, longest, strict=True))
        )
        figures = " / ".join(f"{count[key]:,}" for count in counts)
        label = f'<td class="label">{escape(key)}</td>'
        rows.append(f'<tr>{label}<td class="bar">{bars}</td><td class="n">{figures}</td></tr>')
    more = f'<p class="text">and {of - len(keys)} more</p>' if of > len(keys) else ""
    return f'<div class="panel"><h3>{title}</h3><table class="bars">{"".join(rows)}</table>{more}</div>'


def _most(counts: Sequence[Counter[str]]) -> tuple[list[str], Sequence[Counter[str]], int]:
    """The arguments of `_bars` for the commonest keys."""
    total = Counter[str]()
    for count in counts:
        total.update(count)
    return [key for key, _ in total.most_common(_LINES)], counts, len(total)


def _rising(counts: Sequence[Counter[str]]) -> list[str]:
    """All keys by the number they begin with."""
    return sorted(set().union(*counts), key=lambda key: int(key.split()[0]))


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


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]
