"""Detections of one image: boxes, scores, labels and names, with drawing and conversion to other formats."""

from __future__ import annotations

import colorsys
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from doublehead.common.errors import DoubleheadError, require

if TYPE_CHECKING:
    import pandas
    import supervision

Colour = tuple[int, int, int]

# Okabe and Ito's palette for colour-blind readers, brightened for photographs. Further labels take golden-ratio hues.
_PALETTE: tuple[Colour, ...] = (
    (230, 85, 13),
    (0, 158, 235),
    (40, 190, 90),
    (240, 190, 0),
    (215, 95, 190),
    (0, 205, 205),
    (140, 100, 240),
    (235, 60, 80),
)


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """Detections of one image. Models return them sorted by score, highest first.

    Args:
        boxes: (N, 4) float32, xyxy in pixels of the original image.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64 in 1..C.
        names: the model's C class names; label k is `names[k - 1]`.
        category_ids: dataset ids of the classes; default: 1..C.
        image: RGB image that the boxes belong to, for drawing.

    Raises:
        DoubleheadError: lengths differ, or a label is outside 1..C.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    category_ids: tuple[int, ...] = ()
    image: Image.Image | None = field(default=None)

    def __post_init__(self) -> None:
        values = {
            "boxes": np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4),
            "scores": np.asarray(self.scores, dtype=np.float32).reshape(-1),
            "labels": np.asarray(self.labels, dtype=np.int64).reshape(-1),
            "names": tuple(self.names),
            "category_ids": tuple(self.category_ids) or tuple(range(1, len(self.names) + 1)),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the one way to normalise the fields of a frozen dataclass
        lengths = len(self.boxes), len(self.scores), len(self.labels)
        if len(set(lengths)) > 1:
            raise DoubleheadError(
                "detections need as many scores and labels as boxes, not {1} and {2} for {0}".format(*lengths)
            )
        if len(self.category_ids) != len(self.names):
            raise DoubleheadError(
                f"{len(self.names)} class names need as many category ids, not {len(self.category_ids)}"
            )
        if len(self) and not 1 <= self.labels.min() <= self.labels.max() <= len(self.names):
            raise DoubleheadError(f"labels of detections must lie in 1..{len(self.names)}, the classes named")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool] | np.ndarray) -> Detections:
        """Select detections by boolean mask, slice, indices or a single index."""
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return replace(self, boxes=self.boxes[chosen], scores=self.scores[chosen], labels=self.labels[chosen])

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        same = (self.names, self.category_ids) == (other.names, other.category_ids)
        return same and all(np.array_equal(getattr(self, k), getattr(other, k)) for k in ("boxes", "scores", "labels"))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.class_names).most_common(8))
        return f"<Detections: {len(self)}{f' ({counts})' if counts else ''}>"

    def __str__(self) -> str:
        """List the ten highest-scoring detections, one per line."""
        width = max(map(len, self.class_names), default=0)
        best = self[np.argsort(-self.scores, kind="stable")[:10]]
        lines = [
            f"  {score:.3f}  {name:<{width}}  " + " ".join(f"{v:8.1f}" for v in box)
            for score, name, box in zip(best.scores, best.class_names, best.boxes, strict=True)
        ]
        more = [f"  ... and {len(self) - 10} more"] if len(self) > 10 else []
        return "\n".join([repr(self), *lines, *more])

    @property
    def class_names(self) -> list[str]:
        """Class name of each detection."""
        return [self.names[label - 1] for label in self.labels]

    def above(self, score: float) -> Detections:
        """Return the detections with at least this score."""
        return self[self.scores >= score]

    def where(self, classes: str | Sequence[str] | None = None, score: float = 0.0) -> Detections:
        """Filter by class and score.

        Args:
            classes: one class name or several; None: all.
            score: minimum score.

        Raises:
            DoubleheadError: the model has no such class.
        """
        wanted = self.names if classes is None else (classes,) if isinstance(classes, str) else tuple(classes)
        if unknown := [name for name in wanted if name not in self.names]:
            raise DoubleheadError(f"the model has no class `{unknown[0]}`; it knows {', '.join(self.names)}")
        labels = [label for label, name in enumerate(self.names, 1) if name in wanted]
        return self[np.isin(self.labels, labels) & (self.scores >= score)]

    def crops(self, image: Image.Image | None = None, margin: float = 0.0) -> list[Image.Image]:
        """Crop each box from the image; crops are at least one pixel wide and high.

        Args:
            image: image to crop from; default: the one the detections were computed on.
            margin: extension of the box on each side, as a share of its width and height.

        Raises:
            DoubleheadError: no image is available.
        """
        picture, result = self._picture(image), []
        sides = np.array(picture.size * 2)
        for box in self.boxes:
            more = margin * np.tile(box[2:] - box[:2], 2) * (-1, -1, 1, 1)
            left, top, right, bottom = (box + more).clip(0, sides - (1, 1, 0, 0)).tolist()
            left, top = math.floor(left), math.floor(top)
            result.append(picture.crop((left, top, max(math.ceil(right), left + 1), max(math.ceil(bottom), top + 1))))
        return result

    def _picture(self, image: Image.Image | None) -> Image.Image:
        picture = image if image is not None else self.image
        if picture is None:
            raise DoubleheadError("these detections have no picture: pass one, as in detections.draw(image)")
        return picture

    def _repr_png_(self) -> bytes | None:
        """The drawn image as PNG, which notebooks display."""
        if self.image is None:
            return None
        file = io.BytesIO()
        self.draw().save(file, "PNG")
        return file.getvalue()

    def draw(self, image: Image.Image | None = None, score: float = 0.5) -> Image.Image:
        """Draw boxes with class names and scores on a copy of the image.

        Args:
            image: image to draw on; default: the one the detections were computed on.
            score: minimum score of the boxes drawn.

        Raises:
            DoubleheadError: no image is available.
        """
        picture = self._picture(image)
        shown = self.above(score)
        shown = shown[np.argsort(-shown.scores, kind="stable")]
        captions = [f"{name} {value:.2f}" for name, value in zip(shown.class_names, shown.scores, strict=True)]
        return draw_boxes(picture, shown.boxes, shown.labels, captions)

    def save(self, path: str | Path, image: Image.Image | None = None, score: float = 0.5) -> Path:
        """Save the drawn image or, if the path ends in .json, all detections as JSON.

        Missing folders are created.

        Args:
            path: output file; its extension gives the format.
            image: as in `draw`.
            score: as in `draw`; JSON holds all detections.

        Returns:
            The path.

        Raises:
            DoubleheadError: no image is available, or the extension is not an image format.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".json":
            path.write_text(json.dumps(self.to_dicts(), indent=1), encoding="utf-8")
            return path
        save_picture(self.draw(image, score), path)
        return path

    def to_dicts(self) -> list[dict[str, Any]]:
        """Convert to one dict per detection: name, label, category_id, score, and box as [x1, y1, x2, y2] in pixels."""
        return [
            {
                "name": self.names[label - 1],
                "label": int(label),
                "category_id": self.category_ids[label - 1],
                "score": _shortest(score),
                "box": [_shortest(v) for v in box],
            }
            for box, score, label in zip(self.boxes, self.scores, self.labels, strict=True)
        ]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Convert to COCO's result format: image_id, category_id, bbox as [x, y, width, height], score.

        Coordinates keep four decimals, about the resolution of float32 at 1000 pixels. Scores keep every digit of
        float32: rounding would create ties, which change the metrics.

        Args:
            image_id: the dataset's id of the image.
        """
        x1, y1, x2, y2 = self.boxes.astype(np.float64).T
        boxes = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1).round(4).tolist()
        return [
            {"image_id": image_id, "category_id": self.category_ids[label - 1], "bbox": box, "score": _shortest(score)}
            for box, score, label in zip(boxes, self.scores, self.labels, strict=True)
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """Convert to a DataFrame with name, label, category_id, score, and x1, y1, x2, y2 in pixels.

        Raises:
            DoubleheadError: pandas is not installed.
        """
        pd = require("pandas", "pandas")
        columns = {
            "name": self.class_names,
            "label": self.labels,
            "category_id": np.array(self.category_ids, dtype=np.int64)[self.labels - 1],
            "score": self.scores,
        }
        table: pandas.DataFrame = pd.DataFrame(columns | dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T, strict=True)))
        return table

    def to_yolo(self, size: tuple[int, int] | None = None) -> str:
        """Convert to the text of a YOLO label file: one line per box with class (from 0), centre x, y, width, height.

        Coordinates are relative to the image size; boxes are clipped to the image.

        Args:
            size: width and height of the image in pixels; default: those of `image`.

        Raises:
            DoubleheadError: neither a size nor an image is available.
        """
        width, height = size = self._size(size)
        lines, inside = [], self.inside(size)
        for label, (x1, y1, x2, y2) in zip(inside.labels.tolist(), inside.boxes.tolist(), strict=True):
            box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{label - 1} {' '.join(f'{value:.6f}' for value in box)}\n")
        return "".join(lines)

    def to_voc(self, file: str, size: tuple[int, int] | None = None) -> str:
        """Convert to the text of a Pascal VOC annotation, with box edges as LabelImg and CVAT write them.

        Args:
            file: image file name to write into the annotation.
            size: width and height of the image in pixels; default: those of `image`.

        Raises:
            DoubleheadError: neither a size nor an image is available.
        """
        size = self._size(size)
        inside, root = self.inside(size), Element("annotation")
        texts(root, filename=file)
        texts(SubElement(root, "size"), width=size[0], height=size[1], depth=3)
        for name, box in zip(inside.class_names, inside.boxes.tolist(), strict=True):
            node = SubElement(root, "object")
            texts(node, name=name, difficult=0)
            edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            texts(SubElement(node, "bndbox"), **{key: f"{value:.2f}" for key, value in edges})
        indent(root)
        return tostring(root, encoding="unicode")

    def inside(self, size: tuple[int, int]) -> Detections:
        """Clip boxes to an image of (width, height) and drop those that become empty."""
        limits = np.tile(size, 2)
        boxes = self.boxes.clip(0, limits)
        kept = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        return replace(self, boxes=boxes)[kept]

    def _size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        if size is None and self.image is None:
            raise DoubleheadError("these detections have no picture: pass its size, as in to_yolo((width, height))")
        return size or self._picture(None).size

    def to_supervision(self) -> supervision.Detections:
        """Convert to `supervision.Detections`, with class_id in 0..C-1 and names in data["class_name"].

        Raises:
            DoubleheadError: supervision is not installed.
        """
        sv = require("supervision", "supervision")
        found: supervision.Detections = sv.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels - 1,
            data={"class_name": np.array(self.class_names, dtype=str)},
        )
        return found


def texts(parent: Element, **values: object) -> None:
    """Add a child with text for each value."""
    for name, value in values.items():
        SubElement(parent, name).text = str(value)


def class_colour(label: int) -> Colour:
    """RGB colour of a label (1, 2, ...): fixed, and distinct from those of neighbouring labels."""
    if label <= len(_PALETTE):
        return _PALETTE[label - 1]
    # Steps of the golden ratio never repeat a hue and keep successive ones far apart.
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, (0.95, 0.75)[label % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: Image.Image, boxes: np.ndarray, labels: np.ndarray | Sequence[int], captions: Sequence[str] | None = None
) -> Image.Image:
    """Draw boxes in class colours on a copy of an image, with line and font sizes in proportion to it.

    Args:
        image: any PIL image; the copy is RGB.
        boxes: (N, 4) xyxy in pixels, most important first: drawn on top, with the best place for its caption.
        labels: (N,) class labels 1..C, which determine the colours.
        captions: N texts, drawn on a filled background inside the image; captions that do not fit are omitted.
    """
    canvas = image.convert("RGB")  # always a copy
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(max(canvas.size) / 320))
    colours = [class_colour(int(label)) for label in labels]
    for box, colour in reversed(list(zip(_visible(boxes, canvas.size), colours, strict=True))):
        if box is not None:
            pen.rectangle(box, outline=colour, width=line)
    if captions is not None:
        _write_captions(canvas, boxes, colours, captions, line)
    return canvas


def save_picture(picture: Image.Image, path: Path) -> None:
    """Save an image in the format of the file extension, JPEG at high quality.

    Raises:
        DoubleheadError: the extension is not a writable image format.
    """
    try:
        picture.save(path, quality=92)
    except (ValueError, KeyError) as error:
        raise DoubleheadError(
            f"{path}: {path.suffix or 'no file ending'} is not a picture format; use .jpg or .png"
        ) from error


def _visible(boxes: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int, int, int] | None]:
    """Boxes rounded to whole pixels inside the image, at least one pixel large; None for non-finite boxes."""
    width, height = size
    found: list[tuple[int, int, int, int] | None] = []
    for box in np.asarray(boxes, dtype=np.float64).reshape(-1, 4):
        if not np.isfinite(box).all():
            found.append(None)
            continue
        x1, y1 = (int(np.clip(round(v), 0, top - 1)) for v, top in zip(box[:2], size, strict=True))
        found.append(
            (x1, y1, int(np.clip(round(box[2]) - 1, x1, width - 1)), int(np.clip(round(box[3]) - 1, y1, height - 1)))
        )
    return found


def _write_captions(
    canvas: Image.Image, boxes: np.ndarray, colours: Sequence[Colour], captions: Sequence[str], line: int
) -> None:
    """Write each caption above, at the top of, below or at the bottom of its box: the first place that is free."""
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(10, round(max(canvas.size) / 52)))
    ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (10, 2)
    pad, height = line, ascent + descent + line
    placed: list[tuple[tuple[float, float, float, float], Colour, str]] = []
    for box, colour, caption in zip(_visible(boxes, canvas.size), colours, captions, strict=True):
        width = pen.textlength(caption, font=font) + 2 * pad
        if box is None or width > canvas.width or height > canvas.height / 2:
            continue
        x1, y1, x2, y2 = box
        lefts = min(x1, canvas.width - width), max(0, x2 - width + 1)
        tops = [top for top in (y1 - height + 1, y1, y2, y2 - height + 1) if 0 <= top <= canvas.height - height]
        places = [(left, top, left + width, top + height) for top in tops for left in lefts]
        free = [place for place in places if not any(_overlap(place, other) for other, _, _ in placed)]
        if places:
            placed.append(((free or places)[0], colour, caption))
    for place, colour, caption in reversed(placed):  # the best last, on top
        pen.rectangle(place, fill=colour)
        bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
        pen.text((place[0] + pad, place[1] + pad / 2), caption, fill="black" if bright else "white", font=font)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shortest(value: np.floating) -> float:
    """Convert a float32 with the fewest digits that identify it: 0.9, not 0.8999999761581421."""
    return float(str(np.float32(value)))
