"""Suspects: likely mistakes that do not prevent training, reported as warnings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from doublehead.data.images import IMAGE_SUFFIXES
from doublehead.data.near_copies import near_pairs
from doublehead.data.records import Box, Findings, Record, Split

TINY = 2.0  # pixels of the shorter side
WHOLE = 0.98  # share of the image's area
USUAL = 0.9  # share of images that have a class, or any box at all ...
MANY = 3.0  # ... and boxes of the class in such an image, on average: then a lack of it is likely a lack of labels


def suspect_boxes(split: Split) -> None:
    """Find boxes that are tiny, cover the whole image or occur twice, and coordinates that look like fractions."""
    largest = 0.0
    for record in split.records:
        if not len(record.boxes):
            continue
        largest = max(largest, float(record.boxes.max()))
        x1, y1, x2, y2 = record.boxes.T.clip(0, np.array([[record.width], [record.height]] * 2))
        tiny = np.minimum(x2 - x1, y2 - y1) < TINY
        whole = (x2 - x1) * (y2 - y1) >= WHOLE * record.width * record.height
        for kind, found in ((f"boxes under {TINY:.0f} pixels", tiny), ("boxes over the whole image", whole)):
            for place in np.flatnonzero(found & ~record.crowd):
                _warn(split, kind, record, int(place))
        _twice(split, record)
    if 0 < largest <= TINY:
        split.findings.warn("splits whose boxes look like fractions, not pixels", f"no edge lies beyond {largest:g}")


def suspect_classes(split: Split) -> None:
    """Find classes without boxes, and class names that differ only in spelling."""
    counts = class_counts(split)
    for name, count in zip(split.categories.names, counts, strict=True):
        if not count:
            split.findings.warn("classes without boxes", name)
    spelled: dict[str, str] = {}
    for name in split.categories.names:
        plain = "".join(name.casefold().split())
        if plain in spelled:
            split.findings.warn("classes whose names differ little or not at all", f"`{spelled[plain]}` and `{name}`")
        spelled.setdefault(plain, name)


def suspect_images(splits: Sequence[Split]) -> None:
    """Find images that look unlabelled: without boxes, or without those of a class frequent in nearly all others."""
    records = [record for split in splits for record in split.records]
    labelled = sum(len(record.boxes) > 0 for record in records)
    of_class: dict[str, list[int]] = defaultdict(list)
    for split in splits:
        for record in split.records:
            labels, counts = np.unique(record.labels, return_counts=True)
            for label, count in zip(labels, counts, strict=True):
                of_class[split.categories.names[label - 1]].append(int(count))
    usual = {
        name: round(float(np.mean(counts)))
        for name, counts in of_class.items()
        if len(counts) >= USUAL * len(records) and np.mean(counts) >= MANY
    }
    for split in splits:
        for record in split.records:
            names = {split.categories.names[label - 1] for label in record.labels}
            lacking = [f"no `{name}`, others have {count}" for name, count in usual.items() if name not in names]
            if not len(record.boxes) and labelled >= USUAL * len(records):
                lacking = ["no box at all"]
            if lacking:
                split.findings.warn(
                    "images that look unlabelled", f"{record.path.name}: {'; '.join(lacking)}", record.path
                )


def suspect_overlap(splits: Sequence[Split], digests: dict[Path, bytes], findings: Findings) -> None:
    """Find images that occur twice in a split, or in two splits: the same file, or files with the same pixels."""
    first: dict[bytes, tuple[Split, Path]] = {}
    for split in splits:
        for record in split.records:
            digest = digests.get(record.path)
            if digest is None:
                continue
            known, path = first.setdefault(digest, (split, record.path))
            if known is not split:
                text = f"{record.path.name} of {split.name} and {path.name} of {known.name}"
                findings.warn("pictures in two splits", text, record.path, beside=path)
            elif path != record.path:
                text = f"{path.name} and {record.path.name}"
                split.findings.warn("pictures twice in a split", text, record.path, beside=path)


def suspect_near_copies(
    splits: Sequence[Split], digests: dict[Path, bytes], hashes: dict[Path, int], findings: Findings
) -> None:
    """Warn of images that look like one of an earlier split: frames of a video, or scaled or brightened copies.

    Results on such images are too optimistic. Each is named once with its nearest image, nearest pairs first.
    """
    splits = sorted(splits, key=lambda split: split.name != "train")
    by_hash: dict[int, list[tuple[int, Path]]] = defaultdict(list)  # places of splits, in rising order
    names = [split.name for split in splits]
    for place, path in _homes(splits):
        if path in hashes:
            by_hash[hashes[path]].append((place, path))
    looks = list(by_hash)
    nearest: dict[Path, tuple[int, int, Path, int]] = {}
    for one, other in [(look, look) for look in looks] + [(looks[a], looks[b]) for a, b in near_pairs(looks)]:
        for (place, path), group in ((by_hash[one][0], by_hash[other]), (by_hash[other][0], by_hash[one])):
            for home, copy in group:
                if home > place and digests[copy] != digests[path]:
                    found = ((one ^ other).bit_count(), place, path, home)
                    nearest[copy] = min(found, nearest.get(copy, found))
    for copy, (_, place, path, home) in sorted(nearest.items(), key=lambda item: item[1][0]):
        text = f"{copy.name} of {names[home]} and {path.name} of {names[place]}"
        findings.warn("pictures in two splits that look alike", text, copy, beside=path)


def _homes(splits: Sequence[Split]) -> list[tuple[int, Path]]:
    """Every picture once, with the place of the first split that has it; in the order of splits."""
    homes: dict[Path, int] = {}
    for place, split in enumerate(splits):
        for record in split.records:
            homes.setdefault(record.path, place)
    return [(place, path) for path, place in homes.items()]


def suspect_files(splits: Sequence[Split], findings: Findings) -> None:
    """Warn of image files next to those of the splits that no split uses."""
    for file in unnamed_files(splits):
        findings.warn("image files that no split names", str(file), file)


def unnamed_files(splits: Sequence[Split]) -> list[Path]:
    """Image files next to those of the splits that no split uses."""
    named = {record.path for split in splits for record in split.records}
    return [
        file
        for folder in sorted({path.parent for path in named})
        for file in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if file.suffix.lower() in IMAGE_SUFFIXES and file not in named
    ]


def class_counts(split: Split) -> np.ndarray:
    """Boxes of each class, (C,) int64, crowds not counted."""
    labels = [record.labels[~record.crowd] for record in split.records]
    joined = np.concatenate([np.zeros(0, dtype=np.int64), *labels])
    return np.bincount(joined, minlength=len(split.categories) + 1)[1:]


def _twice(split: Split, record: Record) -> None:
    seen: dict[tuple[float, ...], int] = {}
    for place, (edges, crowd) in enumerate(zip(record.boxes.round().tolist(), record.crowd, strict=True)):
        other = seen.setdefault(tuple(edges), place)
        if other != place and not crowd:
            same = record.labels[other] == record.labels[place]
            kind = "boxes annotated twice" if same else "boxes annotated twice with different classes"
            _warn(split, kind, record, place)


def _warn(split: Split, kind: str, record: Record, place: int) -> None:
    name = split.categories.names[record.labels[place] - 1]
    x1, y1, x2, y2 = map(float, record.boxes[place])
    box: Box = (x1, y1, x2, y2)
    text = f"{record.path.name}: {name} at {x1:g}, {y1:g}, {x2 - x1:g} x {y2 - y1:g}"
    split.findings.warn(kind, text, record.path, box)
