"""Suggested input size and anchors for the boxes of a dataset."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from doublehead.config import ModelConfig
from doublehead.data.records import Split

REACHED = 0.5
"""Minimum IoU of an anchor that matches a box."""
WORTH = 0.03
"""Minimum share of additional boxes that suggested anchors must match."""
SIDES = (240, 320, 400, 480, 560, 640, 720, 800)
"""Candidates for the short side, in pixels."""
SCALES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
"""Candidate factors of the model's anchor sizes."""
RATIOS = ((0.5, 1.0, 2.0), (0.33, 0.5, 1.0, 2.0, 3.0), (0.2, 0.33, 0.5, 1.0, 2.0, 3.0, 5.0))
"""Candidate sets of aspect ratios. The smallest sufficient set is suggested."""


@dataclass(frozen=True)
class Smallness:
    """Criterion for small boxes, and the share of them above which a larger input is suggested."""

    words: str
    found: Callable[[np.ndarray], np.ndarray]  # width and height in the input, (N, 2), to (N,) bool
    most: float

    def share(self, seen: np.ndarray) -> float:
        """Share of boxes that are small; NaN without boxes."""
        return _share(self.found(seen))


TINY = Smallness("under 8 pixels", lambda seen: seen.min(1) < 8, 0.1)
"""Shorter side of less than two cells of the finest map, P2."""
SMALL = Smallness("under 32 x 32 pixels", lambda seen: seen.prod(1) < 32**2, 0.5)
"""Small objects in COCO's sense, whose AP is far below that of others."""


@dataclass(frozen=True)
class Bin:
    """Boxes and anchors within a range of sizes or shapes."""

    low: float
    high: float
    boxes: int
    unreached: int
    anchors: list[float]


@dataclass(frozen=True)
class Advice:
    """Fit of a model to the boxes of a training split. Shares are in 0..1, NaN without boxes."""

    model: str
    boxes: int
    short_side: int  # of the model's input, in pixels
    tiny: float  # share of boxes that are TINY in the input
    small: float  # share of boxes that are SMALL in the input
    unreached: float  # share of boxes that no anchor reaches, wherever it stands
    sides: list[Bin]  # root of a box's area in the input, in pixels
    shapes: list[Bin]  # height / width
    settings: dict[str, Any]  # what would suit better, by keys of --set; empty: nothing
    reasons: list[str]  # a sentence for each change
    given: dict[str, Any] = field(default_factory=dict)  # settings that the model was judged with

    @property
    def line(self) -> str:
        """Given and suggested settings as options of `doublehead train`, quoted for a shell."""
        together = self.given | self.settings
        pairs = (f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in together.items())
        return " ".join(f"--set {shlex.quote(pair)}" for pair in pairs)

    def command(self, data: str) -> str:
        """Command that trains with these settings, quoted for a shell."""
        return f"doublehead train {shlex.quote(data)} --model {shlex.quote(self.model)} {self.line}".rstrip()

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values; NaN becomes null."""
        values = asdict(self)
        shares = {key: None if np.isnan(values[key]) else values[key] for key in ("tiny", "small", "unreached")}
        return values | shares


def advise(split: Split, config: ModelConfig, name: str, given: Mapping[str, Any] | None = None) -> Advice:
    """Compare the boxes of a split with the input size and anchors of a model, and suggest better settings.

    An anchor matches a box if their IoU is at least 0.5 with coinciding centres, an upper bound over all positions.
    Suggested anchors match more boxes than the model's. A suggested input is no larger than the median image, and at
    least halves the share of small boxes.

    Args:
        split: training split.
        config: config of the model.
        name: name of the model.
        given: settings by which `config` differs from the named model, repeated in the command.
    """
    sizes, images = _boxes(split)
    short, long = config.input.short_side, config.input.long_side
    sizes_of, ratios_of = tuple(dict.fromkeys(chain(*config.rpn.sizes))), tuple(config.rpn.aspect_ratios)
    seen = sizes * _scales(images, short, long)[:, None]
    missed = _best_iou(seen, sizes_of, ratios_of) < REACHED
    settings: dict[str, Any] = {}
    reasons: list[str] = []

    side = max(_larger_side(sizes, images, short, long, kind) for kind in (TINY, SMALL))
    larger = sizes * _scales(images, side, side * long / short)[:, None]
    if side > short:
        settings |= {"model.input.short_side": side, "model.input.long_side": round(side * long / short)}
        reasons += [
            f"{kind.share(seen):.0%} of the boxes are {kind.words} at short side {short}: take {side} "
            f"({kind.share(larger):.0%}; {(side / short) ** 2:.1f} times the pixels)"
            for kind in (TINY, SMALL)
            if kind.share(seen) >= kind.most
        ]
    best = _better_anchors(larger, sizes_of, ratios_of)
    if best:
        before, after = _unreached(larger, sizes_of, ratios_of), _unreached(larger, *best)
        changed = {"model.rpn.anchor_sizes": (best[0], sizes_of), "model.rpn.aspect_ratios": (best[1], ratios_of)}
        settings |= {key: list(new) for key, (new, old) in changed.items() if new != old}
        if best[0] != sizes_of and len(config.rpn.sizes[0]) > 1:  # the same sizes on each level
            settings["model.rpn.anchor_sizes"] = [list(best[0])] * len(config.rpn.sizes)
        reasons.append(f"{before:.0%} of the boxes are reached by no anchor at IoU {REACHED}: with these {after:.0%}")
    return Advice(
        model=name,
        boxes=len(sizes),
        short_side=short,
        tiny=TINY.share(seen),
        small=SMALL.share(seen),
        unreached=_share(missed),
        sides=_bins(np.sqrt(seen.prod(1)), missed, sizes_of),
        shapes=_bins(seen[:, 1] / seen[:, 0], missed, ratios_of),
        settings=settings,
        reasons=reasons,
        given=dict(given or {}),
    )


def _boxes(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Width and height of each training box, (N, 2), and of its image, (N, 2); in pixels of the image."""
    sizes, images = [np.zeros((0, 2))], [np.zeros((0, 2))]
    for record in split.records:
        boxes, _ = record.training_boxes()
        kept = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
        kept = kept[(kept > 0).all(1)]
        sizes.append(kept)
        images.append(np.full((len(kept), 2), (record.width, record.height), dtype=np.float64))
    return np.concatenate(sizes), np.concatenate(images)


def _scales(images: np.ndarray, short: float, long: float) -> np.ndarray:
    """Scale factor of each image, (N,)."""
    return np.minimum(short / images.min(1, initial=np.inf), long / images.max(1, initial=1.0))


def _share(found: np.ndarray) -> float:
    return float(found.mean()) if len(found) else float("nan")


def _larger_side(sizes: np.ndarray, images: np.ndarray, short: int, long: int, kind: Smallness) -> int:
    """Smallest short side with few small boxes, or else with half as many; `short` if there is none."""

    def share(side: int) -> float:
        return kind.share(sizes * _scales(images, side, side * long / short)[:, None])

    if not share(short) >= kind.most:
        return short
    limit = float(np.median(images.min(1)))  # enlarging an image adds no detail
    halved = [side for side in SIDES if short < side <= limit and share(side) <= share(short) / 2]
    return next((side for side in halved if share(side) < kind.most), next(iter(halved), short))


def _unreached(sizes: np.ndarray, anchor_sizes: Sequence[float], ratios: Sequence[float]) -> float:
    """Share of boxes that match no anchor."""
    return _share(_best_iou(sizes, anchor_sizes, ratios) < REACHED)


def _best_iou(sizes: np.ndarray, anchor_sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Highest IoU of each box (N, 2) with an anchor at the same centre, (N,)."""
    root = np.sqrt(np.array(ratios, dtype=np.float64))
    side = np.array(anchor_sizes, dtype=np.float64)[:, None]
    anchors = np.stack([side / root, side * root], -1).reshape(-1, 2)
    best = np.zeros(len(sizes))
    for anchor in anchors:  # one at a time: a million boxes by all anchors would fill memory
        both = np.minimum(sizes, anchor).prod(1)
        best = np.maximum(best, both / (sizes.prod(1) + anchor.prod() - both))
    return best


def _better_anchors(
    sizes: np.ndarray, anchor_sizes: tuple[float, ...], ratios: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Sizes and ratios that match at least WORTH more of the boxes, with the fewest ratios; or None."""
    before = _unreached(sizes, anchor_sizes, ratios)
    if not before >= WORTH:
        return None
    scaled: dict[float, tuple[float, ...]] = {
        factor: tuple(max(1, round(size * factor)) for size in anchor_sizes) for factor in SCALES
    }
    scaled[1.0] = anchor_sizes
    for choice in (ratios, *(more for more in RATIOS if len(more) > len(ratios))):
        rows = [(round(_unreached(sizes, scaled[f], choice), 3), abs(np.log(f)), f) for f in SCALES]
        unreached, _, factor = min(rows)
        if before - unreached >= WORTH:
            return scaled[factor], choice
    return None


def _bins(values: np.ndarray, missed: np.ndarray, anchors: Sequence[float]) -> list[Bin]:
    """Histogram over ranges between powers of the square root of 2, without ranges that have no boxes or anchors."""
    places, of_anchor = (np.floor(2 * np.log2(found)).astype(int) for found in (values, np.array(anchors)))
    return [
        Bin(
            low=2 ** (place / 2),
            high=2 ** ((place + 1) / 2),
            boxes=int((places == place).sum()),
            unreached=int((missed & (places == place)).sum()),
            anchors=[float(anchor) for anchor, at in zip(anchors, of_anchor, strict=True) if at == place],
        )
        for place in sorted({*places.tolist(), *of_anchor.tolist()})
    ]
