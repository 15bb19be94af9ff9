"""A training step of the detectors beside torchvision's, with a given number of positive proposals per image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from benchmarks.measure import BenchmarkSettings, Workload, measure
from benchmarks.peers import CLASSES, Peer, Variant, build_peers
from benchmarks.report import Report, versions
from doublehead.common.console import Console
from doublehead.common.device import pick_device
from doublehead.common.errors import DoubleheadError
from doublehead.config import RoIConfig
from doublehead.model.detector import Target
from doublehead.model.variants import VARIANTS as ROWS

ALL = {"roi": {"training_proposals": "all"}}


def _ext(negatives: int) -> dict[str, Any]:
    """Ext whose conv-head classifies so many background proposals, half of them hard."""
    fc, conv = (branch.model_dump() for branch in ROWS["double-head-ext"])
    return {"branches": [fc, conv | {"negatives": negatives, "hard_negatives": negatives // 2}]}


VARIANTS = {
    "torchvision Faster R-CNN, bf16": Variant(None, precision="bf16"),
    "single-fc": Variant("single-fc"),
    "double-head as others train it": Variant("double-head", ALL, ready=False),
    "double-head, all proposals": Variant("double-head", ALL),
    "double-head, positives only": Variant("double-head"),
    "double-head, checkpointed backbone": Variant("double-head", recompute=True),
    "double-head, positives only, bf16": Variant("double-head", precision="bf16"),
    "double-head-fused": Variant("double-head-fused"),
    "double-head-ext": Variant("double-head-ext"),
    "double-head-ext, bf16": Variant("double-head-ext", precision="bf16"),
    "double-head-ext, 64 negatives": Variant("double-head-ext", _ext(64)),
    "double-head-ext, 32 negatives": Variant("double-head-ext", _ext(32)),
    "double-head-ext, 32 negatives, bf16": Variant("double-head-ext", _ext(32), precision="bf16"),
}
"""What is measured. `As others train it`: every sampled proposal through both heads, channels first."""

OBJECTS = 8
"""Objects in each image."""

LEARNING_RATE = 1e-7
"""Next to nothing: an untrained model with frozen norms must not diverge on the steps measured."""


def training(settings: BenchmarkSettings, positives: int = 64, changes: Mapping[str, Any] | None = None) -> Report:
    """Measure one step of every case, on the same random images: losses, gradients and SGD with momentum.

    Args:
        settings: how to measure.
        positives: proposals per image, of those sampled, that match an object; the objects themselves among them.
        changes: to the settings of all models, as nested keys.

    Raises:
        DoubleheadError: a setting has a mistake.
    """
    device = pick_device(settings.device)

    def stepper(peer: Peer) -> Workload:
        learning = [p for p in peer.model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)

        def step() -> None:
            with peer.autocast(device):
                losses = peer.model(images, targets)
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    with settings.with_threads():
        peers = build_peers(VARIANTS, settings, device, changes or {}, learn=True)
        config = peers[-1].model.config
        _require_possible(positives, config.roi)
        images, targets, proposals = _scene(settings, positives, config.rpn.proposals_training, device)
        runs, counts = {}, {}
        with Console().progress("preparing", len(peers)) as advance:
            for peer in peers:
                peer.model.train()
                _fix_proposals(peer, proposals)
                runs[peer.name] = stepper(peer)
                counts[peer.name] = _counts(peer, runs[peer.name])
                advance()
        cases = measure(runs, counts, settings, device)
        said = asdict(settings) | {"positives": positives}
        return Report("benchmark training", said, versions(device), cases, ("positives",))


def _require_possible(positives: int, config: RoIConfig) -> None:
    most = int(config.sampled * config.positive_fraction)
    if not OBJECTS <= positives <= most:
        raise DoubleheadError(
            f"--positives {positives}: give {OBJECTS} to {most}, for the {OBJECTS} objects of an image are positive "
            f"themselves, and no more than {most} of {config.sampled} proposals are drawn positive"
        )


def _scene(
    settings: BenchmarkSettings, positives: int, count: int, device: torch.device
) -> tuple[list[Tensor], list[Target], list[Tensor]]:
    """Images of noise, objects at random, and `count` proposals per image of which `positives` - OBJECTS match one."""
    generator = torch.Generator().manual_seed(0)
    height, width = settings.shape
    limit = torch.tensor([width, height])

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(*size, generator=generator)

    def boxes(number: int) -> Tensor:
        sides = uniform(0.05, 0.4, number, 2) * limit
        corner = uniform(0, 1, number, 2) * (limit - sides)
        return torch.cat([corner, corner + sides], dim=1)

    images, targets, proposals = [], [], []
    for _ in range(settings.batch):
        images.append(uniform(0, 1, 3, height, width).to(device))
        objects = boxes(OBJECTS)
        labels = torch.randint(1, CLASSES + 1, (OBJECTS,), generator=generator)
        # Each edge moves by at most a tenth of the side: the IoU stays above 0.8 * 0.8.
        near = objects[torch.arange(positives - OBJECTS) % OBJECTS]
        near = near + uniform(-0.1, 0.1, len(near), 4) * (near[:, 2:] - near[:, :2]).repeat(1, 2)
        far = boxes(2 * count)
        far = far[box_iou(far, objects).amax(1) < 0.5][: count - len(near)]
        targets.append({"boxes": objects.to(device), "labels": labels.to(device)})
        proposals.append(torch.cat([near, far]).to(device))
    return images, targets, proposals


def _fix_proposals(peer: Peer, proposals: list[Tensor]) -> None:
    """Let the RPN do all its work and then give these: an untrained one would find next to no positives."""
    compute = peer.model.rpn.filter_proposals

    def filter_proposals(*args: Any) -> tuple[list[Tensor], list[Tensor]]:
        _, scores = compute(*args)
        return proposals, scores

    peer.model.rpn.filter_proposals = filter_proposals


def _counts(peer: Peer, step: Workload) -> dict[str, float]:
    """Per image, proposals drawn for the loss, and the positives among them, on average over the batch."""
    heads = peer.head
    sampler = getattr(heads, peer.sampler)
    drawn: list[tuple[int, int]] = []

    def counting(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = sampler(labels)
        drawn.extend((int(p.sum()), int(n.sum())) for p, n in zip(positive, negative, strict=True))
        return positive, negative

    setattr(heads, peer.sampler, counting)
    try:
        step()
    finally:
        setattr(heads, peer.sampler, sampler)
    positive, negative = map(sum, zip(*drawn, strict=True))
    return {"sampled": (positive + negative) / len(drawn), "positives": positive / len(drawn)}
