"""Wholes and parts: a generated COCO dataset whose unlabelled distractors are pieces of the objects themselves.

Telling a whole from a part is what the two heads differ in (paper, section 3), so a detector that answers to texture
or to a corner alone fails here. Every image follows from (seed, split, index) and from nothing else.
"""

from __future__ import annotations

import colorsys
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from doublehead.common.errors import DoubleheadError

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")

# The pieces that no one takes for a whole of any class, as sectors (first degree, extent) about the centre, clockwise
# from the right, in the frame of `_outline`. A quarter of a square, say, is a square, and so is not among them.
_PIECES: dict[str, tuple[tuple[int, int], ...]] = {
    "circle": ((0, 90), (0, 180), (0, 270)),
    "square": ((0, 180), (0, 270)),
    "triangle": ((180, 180), (45, 270)),
    "star": ((-90, 90), (-90, 180), (-54, 252)),
    "cross": ((0, 90), (0, 180), (45, 270)),
    "ring": ((0, 90), (0, 180), (0, 270)),
}
LENGTHS = (12, 160)
"""Longer side of a whole, in pixels."""

OBJECTS = (3, 12)
"""Wholes in an image."""

_TURN = 30  # degrees either way
_SMALLEST_CUT = 24  # a piece of anything smaller is a blot
_WHOLE_VISIBLE, _PIECE_VISIBLE = 0.6, 0.95  # least share that stays visible; a covered piece could pass for a whole
_FINE = 3  # supersampling


def synthesize(
    directory: str | Path,
    images: Mapping[str, int],
    seed: int = 0,
    size: tuple[int, int] = (320, 240),
    progress: Callable[[], object] | None = None,
    objects: tuple[int, int] = OBJECTS,
    lengths: tuple[float, float] = LENGTHS,
) -> Path:
    """Write a COCO dataset in the official layout: `annotations/instances_<split>.json` and `<split>/*.jpg`.

    Three to twelve shapes an image, 12 to 160 pixels long (at most two thirds of the image's short side), turned by
    up to 30 degrees, of any colour, some with outline or pattern, partly covering each other, and up to four pieces
    cut from such shapes, which have no label. A box is the tight box of the whole shape inside the image, covered
    parts included.

    Args:
        directory: made where it is missing; must be empty.
        images: how many images each split gets, such as {"train": 800, "val": 60, "test": 100}.
        seed: from 0; the first images of a longer split are those of a shorter one.
        size: (width, height) in pixels, each at least 64.
        progress: called once per image.
        objects: least and most shapes in an image.
        lengths: least and most of a shape's longer side, in pixels; none under 24 has pieces.

    Raises:
        DoubleheadError: the directory is not empty or cannot be written, or a number is out of range.
    """
    directory = Path(directory)
    if min(size) < 64 or seed < 0 or not images or min(images.values()) < 1:
        raise DoubleheadError(f"{directory}: needs a size from 64x64, a seed from 0 and at least one image per split")
    if not 1 <= objects[0] <= objects[1] or not 4 <= lengths[0] <= lengths[1]:
        raise DoubleheadError(f"{directory}: needs objects from 1 and lengths from 4 pixels, the smaller number first")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise DoubleheadError(f"{directory}: is not empty; name a new folder for the generated images")
        (directory / "annotations").mkdir()
        for split, count in images.items():
            (directory / split).mkdir()
            content = _split(directory / split, split, count, seed, size, objects, lengths, progress)
            (directory / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise DoubleheadError(f"{directory}: cannot be written ({error.strerror})") from error
    return directory


def scene(seed: int = 0, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """One such image, in no dataset.

    Args:
        seed: from 0; another seed, another image.
        size: (width, height) in pixels, each at least 64.
    """
    return Image.fromarray(_scene(np.random.default_rng(seed), *size)[0])


def _split(
    folder: Path,
    split: str,
    count: int,
    seed: int,
    size: tuple[int, int],
    objects: tuple[int, int],
    lengths: tuple[float, float],
    progress: Callable[[], object] | None,
) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
        pixels, found = _scene(rng, *size, objects, lengths)
        file = folder / f"{index:06d}.jpg"
        Image.fromarray(pixels).save(file, quality=92)
        entries.append({"id": index + 1, "file_name": file.name, "width": size[0], "height": size[1]})
        for item in found:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, "iscrowd": 0, **item})
        if progress:
            progress()
    return {
        "info": {"description": "Wholes and parts, generated by doublehead", "seed": seed, "split": split},
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
        "images": entries,
        "annotations": annotations,
    }


@dataclass(frozen=True)
class _Shape:
    """A shape inside the image, and no more of the image than it needs."""

    window: tuple[slice, slice]  # rows and columns of the image
    mask: np.ndarray  # uint8, how far the shape covers each pixel of the window
    edge: np.ndarray  # the same of its outline
    area: float  # in pixels, with what lies outside the image

    @property
    def covered(self) -> np.ndarray:
        """The pixels that count as the shape's."""
        return self.mask >= 128


@dataclass
class _Placed:
    """What is still visible of a shape, and how much of it must stay."""

    window: tuple[slice, slice]
    seen: np.ndarray
    least: float

    def under(self, shape: _Shape) -> np.ndarray:
        """What is visible once another shape lies on top."""
        starts = [max(a.start, b.start) for a, b in zip(self.window, shape.window, strict=True)]
        stops = [min(a.stop, b.stop) for a, b in zip(self.window, shape.window, strict=True)]
        if any(start >= stop for start, stop in zip(starts, stops, strict=True)):
            return self.seen
        mine, its = (
            tuple(slice(a - w.start, b - w.start) for a, b, w in zip(starts, stops, window, strict=True))
            for window in (self.window, shape.window)
        )
        left = self.seen.copy()
        left[mine] &= ~shape.covered[its]
        return left


def _scene(
    rng: np.random.Generator,
    width: int,
    height: int,
    objects: tuple[int, int] = OBJECTS,
    lengths: tuple[float, float] = LENGTHS,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """One image, uint8 (height, width, 3), and its annotations."""
    canvas = _ground(rng, width, height)
    pieces = [False] * int(rng.integers(objects[0], objects[1] + 1)) + [True] * int(rng.integers(0, 5))
    if lengths[1] < _SMALLEST_CUT:
        pieces = pieces[: pieces.count(False)]
    placed: list[_Placed] = []
    found: list[dict[str, Any]] = []
    for piece in rng.permutation(pieces):
        kind = int(rng.integers(len(CLASSES)))
        for _ in range(12):  # places tried
            shape = _shape(rng, CLASSES[kind], bool(piece), width, height, lengths)
            covered = shape.covered
            least = shape.area * (_PIECE_VISIBLE if piece else _WHOLE_VISIBLE)
            if covered.sum() >= least and all(one.under(shape).sum() >= one.least for one in placed):
                break
        else:
            continue
        for one in placed:
            one.seen = one.under(shape)
        placed.append(_Placed(shape.window, covered, least))
        _paint(rng, canvas[shape.window], shape.mask, shape.edge)
        if not piece:
            rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
            sides = [int(columns[-1]) + 1 - int(columns[0]), int(rows[-1]) + 1 - int(rows[0])]
            x, y = shape.window[1].start + int(columns[0]), shape.window[0].start + int(rows[0])
            found.append({"category_id": kind + 1, "bbox": [x, y, *sides], "area": int(covered.sum())})
    canvas += rng.normal(0, rng.uniform(1, 5), canvas.shape)  # the grain of a camera
    return np.rint(canvas).clip(0, 255).astype(np.uint8), found


def _outline(kind: str) -> list[np.ndarray]:
    """Polygons (N, 2) about the origin: the rim of a shape, then that of its hole."""

    def points(count: int, radius: float = 1.0, first: float = 0.0) -> np.ndarray:
        angles = np.deg2rad(first + 360 / count * np.arange(count))
        return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    if kind == "star":
        return [np.stack([points(5, 1, -90), points(5, 0.42, -54)], axis=1).reshape(-1, 2)]
    if kind == "cross":
        a = 0.3
        corner = np.array([[1, a], [a, a], [a, 1]])
        turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return [np.concatenate([corner @ turn for turn in turns])]
    if kind == "ring":
        return [points(64), points(64, 0.55)]
    return [{"circle": points(64), "square": points(4, first=45), "triangle": points(3, first=90)}[kind]]


def _shape(
    rng: np.random.Generator, kind: str, piece: bool, width: int, height: int, lengths: tuple[float, float]
) -> _Shape:
    """A shape somewhere. A whole may pass the image's edge by an eighth of its length."""
    smallest = max(_SMALLEST_CUT, lengths[0]) if piece else lengths[0]
    largest = max(smallest, min(lengths[1], 2 * min(width, height) / 3))
    length = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
    turn = rng.uniform(-_TURN, _TURN)
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    polygons = [polygon @ np.array([[cos, sin], [-sin, cos]]) for polygon in _outline(kind)]
    scale = length / np.ptp(polygons[0], axis=0).max()
    margin = length / 2 * (1.05 if piece else 0.75)
    centre = np.array([rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)])

    # drawn finely in a patch just large enough, then reduced into the image
    reach = int(np.ceil(scale)) + 2
    corner = np.floor(centre).astype(int) - reach
    side = 2 * reach + 1
    fill = Image.new("L", (side * _FINE, side * _FINE))
    line = fill.copy()
    thickness = max(1.0, length * 0.05) * _FINE * bool(rng.random() < 0.4)
    for polygon, value in zip(polygons, (255, 0), strict=False):
        corners = [(x, y) for x, y in ((polygon * scale + centre - corner) * _FINE).tolist()]
        ImageDraw.Draw(fill).polygon(corners, fill=value)
        if thickness:
            ImageDraw.Draw(line).line([*corners, *corners[:2]], fill=255, width=round(thickness), joint="curve")
    if piece:
        first, extent = _PIECES[kind][int(rng.integers(len(_PIECES[kind])))]
        x, y = ((centre - corner) * _FINE).tolist()
        far = 3 * side * _FINE
        sector = Image.new("L", fill.size)
        ImageDraw.Draw(sector).pieslice((x - far, y - far, x + far, y + far), first + turn, first + extent + turn, 255)
        fill.paste(0, mask=sector.point(lambda v: 255 - v))
    patch = np.asarray(fill.reduce(_FINE))
    edge = np.minimum(patch, np.asarray(line.reduce(_FINE)))
    area = float((patch >= 128).sum())
    x, y = int(corner[0]), int(corner[1])
    inside = slice(max(0, -y), height - y), slice(max(0, -x), width - x)
    mask = patch[inside]
    rows, columns = (slice(max(0, low), max(0, low) + size) for low, size in zip((y, x), mask.shape, strict=True))
    return _Shape((rows, columns), mask, edge[inside], area)


def _paint(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray, edge: np.ndarray) -> None:
    """Colour a shape so that it stands out from what lies beneath it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    mask, edge, below = mask[window], edge[window], canvas[window]
    ground = below[mask >= 128].mean(axis=0)
    colours = [_colour(rng) for _ in range(6)]
    colour = max(colours, key=lambda c: min(110.0, float(np.linalg.norm(c - ground))))  # the first that is far enough

    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] / max(mask.shape)
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    style = rng.choice(["plain", "shaded", "striped", "speckled"], p=[0.35, 0.3, 0.2, 0.15])
    if style == "shaded":
        light = 1 + 0.5 * (along - along.mean())
    elif style == "striped":
        light = 1 + 0.22 * np.sign(np.sin(along * 2 * np.pi * rng.uniform(3, 7)))
    elif style == "speckled":
        light = 1 + 0.15 * rng.standard_normal(mask.shape)
    else:
        light = np.ones(mask.shape)
    rim = colour * (0.35 if colour.mean() > 110 else 1.0) + (0 if colour.mean() > 110 else 110)
    for coverage, paint in ((mask, colour * light[..., None]), (edge, rim)):
        alpha = coverage[..., None] / 255
        below += alpha * (paint - below)


def _ground(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A ground of two muted colours, mixed by noise of several scales and a gradient: float64 (height, width, 3)."""
    mix = np.zeros((height, width))
    for cell, weight in ((4, 0.3), (16, 0.5), (64, 1.0)):
        grid = rng.random((height // cell + 2, width // cell + 2), dtype=np.float32)
        noise = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        mix += weight * rng.uniform(0.3, 1) * (np.asarray(noise) - 0.5)
    y, x = np.mgrid[:height, :width] / max(width, height)
    angle = rng.uniform(0, 2 * np.pi)
    mix += rng.uniform(0, 0.8) * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    first, second = _colour(rng, muted=True), _colour(rng, muted=True)
    return first + (0.5 + mix).clip(0, 1)[..., None] * (second - first)


def _colour(rng: np.random.Generator, muted: bool = False) -> np.ndarray:
    saturation = rng.uniform(0.05, 0.4) if muted else rng.uniform(0.5, 1.0)
    return 255 * np.array(colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(0.3, 0.9)))
