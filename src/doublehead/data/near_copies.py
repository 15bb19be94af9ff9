"""Near-copies: pictures that show the same thing, such as frames of one video or augmented copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

BITS = 64
NEAR = 4  # bits in which the hashes of near-copies differ at most
STEP = 2  # grey levels that neighbours must differ by to count as structure
PLAIN = 24  # neighbours that must differ, of 64: photos have about 50, a few objects on white paper under 20


def perceptual_hash(image: Image.Image) -> int | None:
    """Hash what a picture looks like to 64 bits: whether each cell of an 8 x 8 grid is darker than its right neighbor.

    Copies that were scaled, recompressed or brightened differ in a few bits (Krawetz, "Kind of Like That", 2013).
    None: the picture is too plain, such as objects on white paper or a dark room. Hashes of such pictures are mostly
    equal whatever they show.
    """
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    if (np.abs(np.diff(cells)) > STEP).sum() < PLAIN:
        return None
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def near_pairs(hashes: Sequence[int], distance: int = NEAR) -> Iterator[tuple[int, int]]:
    """Yield pairs of indices whose hashes differ in at most `distance` bits.

    Every such pair comes at least once, except that of equal hashes only the first is compared with others and each of
    the rest is paired with the first. Of `distance + 1` slices of the bits at least one is equal in a pair, so only
    hashes that share a slice are compared.
    """
    values, first, of = np.unique(np.array(hashes, dtype=np.uint64), return_index=True, return_inverse=True)
    yield from ((int(first[value]), index) for index, value in enumerate(of) if first[value] != index)
    for low, high in pairwise(np.linspace(0, BITS, distance + 2).astype(int).tolist()):
        slices = (values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(slices, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(slices[order])) + 1):
            for place, one in enumerate(bucket[:-1]):
                others = bucket[place + 1 :]
                near = _ones(values[others] ^ values[one]) <= distance
                yield from ((int(first[one]), int(first[other])) for other in others[near])


def _ones(values: np.ndarray) -> np.ndarray:
    """Bits that are set in each uint64."""
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


def group(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Join the indices 0 .. count - 1 into groups along `pairs`; groups and members in rising order."""
    parent = list(range(count))

    def top(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, second in pairs:
        low, high = sorted((top(first), top(second)))
        parent[high] = low
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(count):
        members[top(index)].append(index)
    return list(members.values())


def original_name(name: str) -> str:
    """Return a file's name before `.rf.`, which Roboflow's augmented copies of one picture share."""
    return name.split(".rf.")[0]
