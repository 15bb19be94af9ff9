"""Owners of candidate detections, which decide what staged inference costs: counted, and set in untrained models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Workload
from benchmarks.peers import Peer, Variant, of_detector
from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.evaluation.evaluate import predict_split
from doublehead.inference.predictor import load
from doublehead.model.postprocess import owns_candidate

SPREAD = 3.0
"""Standard deviation over proposals that untrained logits are given: most owners then have one class or two."""

ATTEMPTS = 100


@dataclass
class Seen:
    """What went through a peer the last time it ran."""

    proposals: list[int] = field(default_factory=list)  # per image
    hidden: list[Tensor] = field(default_factory=list)  # (N, width) into each classifier
    logits: list[Tensor] = field(default_factory=list)  # (N, C + 1) out of each classifier
    boxes: int = 0  # proposals whose boxes were computed, all images together


@contextmanager
def watch(peer: Peer) -> Iterator[Seen]:
    """Look into the runs inside."""
    seen = Seen()

    def begin(module: nn.Module, inputs: Any, outputs: Any) -> None:
        seen.proposals = [len(boxes) for boxes in outputs[0]]
        seen.hidden, seen.logits, seen.boxes = [], [], 0

    def classified(module: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        seen.hidden.append(inputs[0])
        seen.logits.append(logits)

    def boxed(module: nn.Module, inputs: tuple[Tensor], deltas: Tensor) -> None:
        seen.boxes += len(deltas)

    hooks = [peer.model.rpn.register_forward_hook(begin), peer.box_layer.register_forward_hook(boxed)]
    hooks += [classifier.register_forward_hook(classified) for classifier in peer.classifiers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def owners_per_image(peer: Peer, seen: Seen) -> list[int]:
    """How many proposals of each image own a candidate detection."""
    own = owns_candidate(peer.fuse(seen.logits), peer.threshold)
    return [int(part.sum()) for part in own.split(seen.proposals)]


@torch.no_grad()
def set_owners(peer: Peer, run: Workload, wanted: int, device: torch.device) -> None:
    """Change the classifiers of an untrained peer so that `wanted` proposals of each image own a candidate.

    The logits of each class are spread over the proposals; then the background's are shifted, to midway between what
    the proposal in place `wanted` and the next one need to lose their last candidate.

    Args:
        peer: the model.
        run: runs it on images that are all the same.
        wanted: owners per image.
        device: where it runs.

    Raises:
        DoubleheadError: there are fewer proposals than owners wanted.
    """
    for classifier in peer.classifiers:
        classifier.float()  # 16 bits are too coarse for the shift
    with watch(peer) as seen:
        run()
    if wanted > min(seen.proposals):
        raise DoubleheadError(f"--owners {wanted}: an image of this size has only {min(seen.proposals)} proposals")
    total = wanted * len(seen.proposals)

    def owners(means: list[float], shift: float) -> int:
        for classifier, mean in zip(peer.classifiers, means, strict=True):
            classifier.bias[0] = shift - mean
        with peer.autocast(device):
            logits = [layer(hidden) for layer, hidden in zip(peer.classifiers, seen.hidden, strict=True)]
            return int(owns_candidate(peer.fuse(logits), peer.threshold).sum())

    def last_shift(means: list[float], at_least: int) -> float:
        """The largest shift of the background that leaves so many owners."""
        low, high = -100.0, 100.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if owners(means, middle) >= at_least else (low, middle)
        return low

    # In 16 bits several proposals can lose their candidates at once: another spread rounds them differently.
    for attempt in range(ATTEMPTS):
        spread = SPREAD * (1 + attempt / ATTEMPTS)
        means = [_spread(layer, hidden, spread) for layer, hidden in zip(peer.classifiers, seen.hidden, strict=True)]
        if owners(means, (last_shift(means, total) + last_shift(means, total + 1)) / 2) == total:
            break


def _spread(classifier: nn.Linear, hidden: Tensor, spread: float) -> float:
    """Give the logits of each class mean 0 and this standard deviation over the proposals.

    Returns:
        What the background's logits would be on average without their bias.
    """
    logits = hidden.float() @ classifier.weight.T
    scale = spread / logits.std(0).clamp(min=1e-6)
    means = logits.mean(0) * scale
    classifier.weight.mul_(scale[:, None])
    classifier.bias.copy_(-means)
    return float(means[0])


@dataclass(frozen=True)
class OwnerCounts:
    """Owners of candidate detections in the images of a split."""

    weights: str
    data: str
    split: str
    owners: list[int]  # per image

    def to_json(self) -> dict[str, Any]:
        """The distribution, and the counts themselves."""
        return {
            "command": "benchmark owners",
            "weights": self.weights,
            "data": self.data,
            "split": self.split,
            "images": len(self.owners),
            "mean": float(np.mean(self.owners)),
            "median": float(np.median(self.owners)),
            "percentile_90": float(np.percentile(self.owners, 90)),
            "max": max(self.owners),
            "owners": self.owners,
        }

    def text(self) -> str:
        """One line."""
        v = self.to_json()
        return (
            f"owners of candidate detections per image, over {v['images']} images of `{self.split}`: "
            f"mean {v['mean']:.1f}, median {v['median']:g}, 90th percentile {v['percentile_90']:g}, max {v['max']}"
        )


def count_owners(
    weights: str | Path, data: str | Path, split: str = "val", batch_size: int = 4, device: str = "auto"
) -> OwnerCounts:
    """Count the owners that a trained model finds in each image of a split.

    Raises:
        DoubleheadError: weights, data or split have a mistake, or the split holds no images.
    """
    predictor = load(weights, device)
    chosen = open_dataset(data).read(split)
    if not chosen.records:
        raise DoubleheadError(f"{data}: split `{split}` holds no images")
    peer = of_detector("", predictor.model, Variant(None))
    owners: list[int] = []
    with Console().progress("counting", len(chosen.records)) as advance, watch(peer) as seen:

        def went_on(images: int) -> None:
            owners.extend(owners_per_image(peer, seen))
            advance(images)

        predict_split(predictor, chosen, batch_size, progress=went_on)
    return OwnerCounts(str(weights), str(data), split, owners)
