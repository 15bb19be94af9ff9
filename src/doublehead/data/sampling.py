"""How often each image of a split is seen: rare classes more often, or by weights in the annotations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from doublehead.common.errors import DoubleheadError
from doublehead.data.records import Record


def repeat_factors(records: Sequence[Record], threshold: float) -> np.ndarray:
    """How often to repeat each image (Gupta et al. 2019, LVIS, section 4.2).

    A class c that a share f(c) of all images has gets r(c) = max(1, sqrt(threshold / f(c))), an image the largest r(c)
    of its classes, and one without boxes 1.
    """
    labels = [np.unique(record.labels[~record.crowd]) for record in records]
    images = np.bincount(np.concatenate([*labels, np.zeros(0, np.int64)]).astype(np.int64), minlength=1)
    share = np.maximum(images, 1) / max(len(records), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([of_class[each].max(initial=1.0) for each in labels])


def sampling_factors(records: Sequence[Record], threshold: float | None, weights: bool) -> np.ndarray | None:
    """How often each image is seen in an epoch, on average; None: each once.

    Args:
        records: of the split.
        threshold: of `repeat_factors`; None: no image is repeated.
        weights: whether the images' own weights multiply that.

    Raises:
        DoubleheadError: no image has a weight, all are 0, or one is not a number from 0 up.
    """
    if threshold is None and not weights:
        return None
    factors = np.ones(len(records)) if threshold is None else repeat_factors(records, threshold)
    if not weights:
        return factors
    own = np.array([record.weight for record in records])
    wrong = [record for record, weight in zip(records, own, strict=True) if not 0 <= weight < 1e6]
    if wrong:
        raise DoubleheadError(
            f"{wrong[0].path}: its `weight` must be a number from 0 to a million; correct it in the annotations, or "
            "omit data.image_weights"
        )
    if not own.any() or (own == 1).all():
        raise DoubleheadError(
            "data.image_weights: no image has a `weight` in the annotations; add it to the images of the COCO file or "
            "to the targets of the dataset, or omit data.image_weights"
        )
    return factors * own


def images_per_epoch(images: int, factors: np.ndarray | None) -> int:
    """How many images an epoch shows, repetitions counted."""
    return images if factors is None else max(1, int(factors.sum()))


def epoch_order(images: int, factors: np.ndarray | None, rng: np.random.Generator) -> list[int]:
    """The images of an epoch, shuffled.

    With factors, an image comes as often as its factor says, rounded up or down by systematic sampling: the number of
    images is the same in every epoch, and each is seen in proportion to its factor in the long run.
    """
    order = rng.permutation(images)
    if factors is None:
        return order.tolist()
    total = images_per_epoch(images, factors)
    ends = np.minimum(np.cumsum(factors[order]) * (total / factors.sum()), total)
    ends[-1] = total
    counts = np.diff(np.floor(ends + rng.random()), prepend=0).astype(int)
    return rng.permutation(np.repeat(order, counts)).tolist()
