"""COCO's run-length masks, as far as the boxes around them."""

from __future__ import annotations

from typing import Any

import numpy as np

from doublehead.common.errors import DoubleheadError
from doublehead.data.records import Box

_RUNS = 10_000_000  # more are in no mask


def rle_box(mask: dict[str, Any], what: str) -> Box:
    """The box around a mask of COCO's: `size` (height, width) and `counts`, runs of 0 and 1 down the columns in turn.

    Args:
        mask: with `counts` as a list, or compressed to a string (pycocotools, maskApi.c, rleFrString).
        what: file and annotation, for the error.

    Raises:
        DoubleheadError: the mask is malformed or empty.
    """
    size: Any = mask.get("size")
    counts: Any = mask.get("counts")
    sound = isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side < 2**20 for side in size)
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if not sound or not isinstance(runs, list) or not all(type(run) is int and 0 <= run < 2**40 for run in runs):
        raise DoubleheadError(f"{what} needs `size` (height, width) and `counts`")
    if len(runs) > _RUNS or sum(runs) > size[0] * size[1]:
        raise DoubleheadError(f"{what} has more pixels than its `size`")
    height = size[0]
    ends = np.cumsum(np.array(runs, dtype=np.int64))
    first, last = ends[0:-1:2], ends[1::2] - 1  # pixels of the runs of 1
    first, last = first[last >= first], last[last >= first]
    if not len(first):
        raise DoubleheadError(f"{what} is empty")
    whole = first // height < last // height  # a run that passes the end of a column covers both ends of it
    top = np.where(whole, 0, first % height).min()
    bottom = np.where(whole, height - 1, last % height).max()
    return float(first.min() // height), float(top), float(last.max() // height + 1), float(bottom + 1)


def _decompress(text: str) -> list[int] | None:
    """Numbers of 5 bits a letter, the lowest first; from the third on each is the difference to the last but one."""
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code >> 4 & 1) << shift  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs if not shift else None
