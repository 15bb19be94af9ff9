"""Split a dataset without splits into train, val and test by the content of its images."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from doublehead.common.threads import in_threads
from doublehead.config import SplitConfig
from doublehead.data.images import open_image
from doublehead.data.near_copies import NEAR, group, near_pairs, original_name, perceptual_hash
from doublehead.data.records import Finding, Findings, Place, Record, Split

MOST = 0.5
"""Share of the images that a group of near-copies may hold: a larger one leaves too little for the other splits."""


def share_out(whole: Split, config: SplitConfig) -> dict[str, Split]:
    """Split the images of `whole` into train, val and test.

    The split of an image depends on a hash of its file's bytes, the seed and the turn, not on its name or position.
    Near-copies stay together: images that look alike, and those whose names differ only after `.rf.`. If a split with a
    share would be empty, it gets the nearest group.

    Findings are assigned to the split of their image, or else to train.
    """
    home = _homes(whole.records, config)
    parts: dict[str, Split] = {}
    for name in config.names:
        records = [record for record, split in zip(whole.records, home, strict=True) if split == name]
        parts[name] = Split(name, records, whole.categories, Findings(), str(config))
    of_image = {record.path: parts[split] for record, split in zip(whole.records, home, strict=True)}
    for finding in whole.findings:
        _hand_out(finding, of_image, parts)
    return parts


def _homes(records: Sequence[Record], config: SplitConfig) -> list[str]:
    """The split of each record."""
    seen = list(in_threads(_look, records))
    groups = _near_copies(records, [looks for _, looks in seen])
    hashes = [min(seen[index][0] for index in members) for members in groups]
    places = [(_fraction(digest, config.seed) + config.turn) % 1 for digest in hashes]
    bounds = config.bounds
    chosen = [bisect(bounds[1:-1], place) for place in places]
    for number in range(len(config.names)):
        if number not in chosen:
            _fill(number, chosen, places, bounds)
    home = [""] * len(records)
    for members, number in zip(groups, chosen, strict=True):
        for index in members:
            home[index] = config.names[number]
    return home


def _near_copies(records: Sequence[Record], looks: Sequence[int | None]) -> list[list[int]]:
    """Groups of near-copies, by name and by look.

    Where most pictures look alike, as those of a camera that does not move, only closer ones count as copies.
    """
    by_name: dict[str, int] = {}
    pairs = [(by_name.setdefault(original_name(record.path.name), i), i) for i, record in enumerate(records)
             if ".rf." in record.path.name]  # fmt: skip
    hashed = [index for index, look in enumerate(looks) if look is not None]
    hashes = [look for look in looks if look is not None]
    for distance in range(NEAR, -1, -1):
        alike = [(hashed[first], hashed[second]) for first, second in near_pairs(hashes, distance)]
        groups = group(len(records), pairs + alike)
        if max(map(len, groups), default=0) <= MOST * len(records):
            return groups
    return group(len(records), pairs)


def _fill(number: int, chosen: list[int], places: list[float], bounds: Sequence[float]) -> None:
    """Give an empty split the group that is nearest to it, out of a split that has others left."""
    spare = [index for index, other in enumerate(chosen) if chosen.count(other) > 1]
    if spare:
        low, high = bounds[number], bounds[number + 1]
        nearest = min(spare, key=lambda index: (max(low - places[index], places[index] - high), places[index]))
        chosen[nearest] = number


def _look(record: Record) -> tuple[bytes, int | None]:
    """A digest of the image's bytes, and what it looks like, unless it is damaged."""
    try:
        content = record.encoded() or record.path.read_bytes()
    except OSError:
        content = record.path.name.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        with open_image(BytesIO(content)) as image:
            image.draft("L", (72, 64))  # a JPEG is then decoded at an eighth of its size
            return digest, perceptual_hash(image)
    except Exception:  # as decoders do on damaged bytes, which `check` and training tell
        return digest, None


def _fraction(digest: bytes, seed: int) -> float:
    """A digest as a number from 0 up to 1."""
    mixed = hashlib.blake2b(digest, digest_size=8, salt=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(mixed, "big") / 2**64


def _hand_out(finding: Finding, of_image: dict[Path, Split], parts: dict[str, Split]) -> None:
    def put(split: Split, places: list[Place], count: int) -> None:
        if count:
            known = split.findings.by_kind.get(finding.kind, Finding(finding.kind, finding.error))
            split.findings.by_kind[finding.kind] = replace(
                known, count=known.count + count, places=known.places + places
            )

    for place in finding.places:
        put(of_image.get(place.image, parts["train"]) if place.image else parts["train"], [place], 1)
    put(parts["train"], [], finding.count - len(finding.places))
