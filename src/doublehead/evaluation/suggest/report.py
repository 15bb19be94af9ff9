"""What `suggest` writes: index.html, which carries everything it shows, suggestions.json, labels.csv and images.csv."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import doublehead
from doublehead.common.console import shorten
from doublehead.common.pages.pages import jpeg, render
from doublehead.common.plain import plain
from doublehead.common.threads import in_threads
from doublehead.data.images import read_image
from doublehead.data.records import Record
from doublehead.evaluation.report.pictures import FOUND, TRUTH, framed
from doublehead.evaluation.report.tables import Row, write_cells
from doublehead.evaluation.suggest.images import Teaching
from doublehead.evaluation.suggest.labels import KINDS, Suspect
from doublehead.evaluation.suggest.run import Suggestions
from doublehead.inference.detections import draw_boxes

PAGE = "index.html"

CROPS, IMAGES = 120, 24
"""Labels and images on the page; the CSV files have all."""

_SIDE, _LONG_SIDE = 200, 480  # pixels
_NAME = 24  # columns of a file name
_DRAWN = 0.3  # score of a detection that is drawn

LABEL_COLUMNS = (
    *("rank", "doubt", "kind", "split", "image", "image_id", "annotation", "label", "x1", "y1", "x2", "y2"),
    *("better_label", "better_x1", "better_y1", "better_x2", "better_y2", "score", "tightness"),
)
IMAGE_COLUMNS = ("rank", "score", "image", "entropy", "disagreement", "detections")


@dataclass(frozen=True)
class _Shown:
    uri: str
    words: str


def write_suggestions(found: Suggestions, folder: Path) -> None:
    """Write the page and the tables into a folder, made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    labels, images = label_rows(found), image_rows(found)
    for name, columns, rows in (("labels", LABEL_COLUMNS, labels), ("images", IMAGE_COLUMNS, images)):
        write_cells(folder / f"{name}.csv", [columns, *([row[column] for column in columns] for row in rows)])
    values = {"doublehead": doublehead.__version__, "labels_seen": found.labels, "labels": labels, "images": images}
    (folder / "suggestions.json").write_text(json.dumps(plain(values), indent=1), encoding="utf-8")
    (folder / PAGE).write_text(_page(found), encoding="utf-8", errors="replace")


def label_rows(found: Suggestions) -> list[Row]:
    """A row for each suspect label, most doubted first. `annotation` counts the image's annotations from 0."""
    return [
        {
            "rank": rank,
            "doubt": one.doubt,
            "kind": one.kind,
            "split": one.split,
            "image": _name(found, one.record),
            "image_id": one.record.image_id,
            "annotation": "" if one.row < 0 else one.row,
            "label": _class(found, one.label),
            **_edges("", one.box),
            "better_label": _class(found, one.better_label),
            **_edges("better_", one.better_box),
            "score": one.sure,
            "tightness": one.tightness,
        }
        for rank, one in enumerate(found.suspects, 1)
    ]


def image_rows(found: Suggestions) -> list[Row]:
    """A row for each image without labels, the one that would teach most first."""
    return [
        {
            "rank": rank,
            "score": one.score,
            "image": _name(found, one.record),
            "entropy": one.entropy,
            "disagreement": one.disagreement,
            "detections": len(one.found),
        }
        for rank, one in enumerate(found.images, 1)
    ]


def next_steps(found: Suggestions) -> list[str]:
    """What to do with the suggestions, a sentence each."""
    steps = []
    if found.suspects:
        steps += [
            "Look at the labels from the top of the list, and stop where most of them are right.",
            "Correct them where they were annotated; labels.csv names each, and the model's box and class.",
            f"Check and train again: doublehead check {shlex.quote(str(found.data))}",
        ]
    if found.images:
        best = shlex.quote(str(found.images[0].record.path))
        steps.append(
            "Label the first images of images.csv. Let the model begin, in the format of your annotation tool: "
            f"doublehead predict {shlex.quote(found.weights)} {best} --format cvat"
        )
    return steps


def summary(found: Suggestions) -> list[str]:
    """What was found, a sentence each."""
    said = []
    if found.splits:
        share = len(found.likely) / max(1, found.labels)
        said.append(f"{len(found.likely):,} of {found.labels:,} labels ({share:.1%}) are likely wrong or missing.")
    if found.images:
        said.append(f"{len(found.images):,} images without labels are ranked by what they would teach.")
    return said or ["There is nothing to look at."]


def _page(found: Suggestions) -> str:
    shown = found.likely[:CROPS]
    by_kind: dict[str, list[_Shown]] = defaultdict(list)
    for one, picture in zip(shown, _crops(found, shown), strict=True):
        by_kind[one.kind].append(picture)
    likely = {kind: sum(one.kind == kind for one in found.likely) for kind in KINDS}
    return render(
        "evaluation/suggest/page.html",
        data=str(found.data),
        summary=summary(found),
        steps=next_steps(found),
        splits=found.rows(),
        kinds=[(kind, likely[kind], by_kind[kind]) for kind in KINDS],
        most=CROPS,
        images=list(in_threads(lambda one: _whole(found, one), found.images[:IMAGES])),
        ranked=len(found.images),
        labelled=bool(found.splits),
    )


def _crops(found: Suggestions, shown: Sequence[Suspect]) -> list[_Shown]:
    """A crop of each suspect; every image is read once."""
    by_image: dict[tuple[str, int], list[int]] = defaultdict(list)
    for place, one in enumerate(shown):
        by_image[one.split, one.record.image_id].append(place)

    def look(places: list[int]) -> list[_Shown]:
        record = shown[places[0]].record
        image = read_image(record.path, record.encoded())
        return [_crop(found, image, shown[place]) for place in places]

    made: dict[int, _Shown] = {}
    groups = list(by_image.values())
    for places, pictures in zip(groups, in_threads(look, groups), strict=True):
        made.update(zip(places, pictures, strict=True))
    return [made[place] for place in range(len(shown))]


def _crop(found: Suggestions, image: Any, one: Suspect) -> _Shown:
    frames = [(TRUTH, one.box)] if one.box is not None else []
    frames += [(FOUND, one.better_box)] if one.better_box is not None else []
    return _Shown(
        framed(image, frames, _SIDE), f"{one.doubt:.2f} {_words(found, one)}, {shorten(one.record.path.name, _NAME)}"
    )


def _words(found: Suggestions, one: Suspect) -> str:
    label, better = _class(found, one.label), _class(found, one.better_label)
    if one.kind == "class":
        return f"{label}, looks like {better}"
    if one.kind == "place":
        return f"{label}, box moves to IoU {one.tightness:.2f}"
    return f"{label}, looks like background" if one.kind == "spurious" else f"{better} without a label"


def _whole(found: Suggestions, one: Teaching) -> _Shown:
    image = read_image(one.record.path, one.record.encoded())
    scale = _LONG_SIDE / max(image.size)
    small = image.resize([max(1, round(side * scale)) for side in image.size])
    drawn = one.found.above(_DRAWN)
    captions = [f"{name} {score:.2f}" for name, score in zip(drawn.class_names, drawn.scores, strict=True)]
    picture = draw_boxes(small, drawn.boxes * scale, drawn.labels, captions)
    return _Shown(jpeg(picture), f"{one.score:.2f} {shorten(_name(found, one.record), 2 * _NAME)}")


def _name(found: Suggestions, record: Record) -> str:
    """The image's path inside the data's folder, or else its name."""
    root = found.data.expanduser()
    return record.path.relative_to(root).as_posix() if record.path.is_relative_to(root) else record.path.name


def _class(found: Suggestions, label: int) -> str:
    return found.categories.names[label - 1] if label else ""


def _edges(prefix: str, box: np.ndarray | None) -> Row:
    values = [""] * 4 if box is None else [round(float(value), 1) for value in box]
    return {f"{prefix}{edge}": value for edge, value in zip(("x1", "y1", "x2", "y2"), values, strict=True)}
