"""One box head: sample proposals, pool them for each branch, run the branches; losses, or scores and boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder

from doublehead.config import InferenceOptions, ModelConfig
from doublehead.model.boxes import Edges
from doublehead.model.branches import Branch
from doublehead.model.classification import Classification
from doublehead.model.matching import BoxMatcher
from doublehead.model.pooling import RoIPooler
from doublehead.model.postprocess import Scored, fuse

RESOLUTION = 7

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""By which encoded offsets and log sizes are multiplied: the inverse of their standard deviations."""


@dataclass
class Sample:
    """Proposals drawn for the loss, image by image, the positives of each first."""

    boxes: list[Tensor]  # per image, (N, 4) xyxy
    labels: list[Tensor]  # per image, (N,): 0 is background
    targets: list[Tensor]  # per image, (N, 4): box deltas to the matched object


class BoxHead(nn.Module):
    """Branches over pooled proposals, with the matcher that labels proposals and the coder of their boxes.

    Args:
        config: the branches, and how proposals are sampled.
        classes: number of classes C without the background.
    """

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        self.config = config.roi
        self.names = config.branch_names
        self.branch_configs = config.branches
        self.pooler = RoIPooler(
            RESOLUTION, config.roi.sampling_ratio, config.roi.aligned, Edges(config.inclusive_pixels), config.strides
        )
        self.branches = nn.ModuleList(Branch(b, config, classes, RESOLUTION) for b in config.branches)
        self.classification = Classification(config.roi, classes)
        self.coder = BoxCoder(DELTA_WEIGHTS)
        self.matcher = BoxMatcher(config.roi.foreground_iou, config.roi.foreground_iou)
        self.sampler = BalancedPositiveNegativeSampler(config.roi.sampled, config.roi.positive_fraction)

    def __iter__(self) -> Iterator[Branch]:
        for branch in self.branches:
            assert isinstance(branch, Branch)
            yield branch

    def score_branches(self, options: InferenceOptions) -> list[int]:
        """Places of the branches whose scores count."""
        return [i for i, b in enumerate(self) if b.config.classify and options.score_branch in (None, self.names[i])]

    def box_branch(self, options: InferenceOptions) -> int:
        """Place of the branch that gives the boxes."""
        if options.box_branch:
            return self.names.index(options.box_branch)
        weights = [branch.config.regress for branch in self]
        return weights.index(max(weights))

    def losses(
        self, levels: list[Tensor], proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Losses of all branches, weighted (paper, equations 2 to 4).

        Args:
            levels: P2..P5.
            proposals: per image, (N, 4).
            targets: per image, `boxes` (M, 4) and `labels` (M,).
        """
        sample = self.sample(proposals, targets)
        labels, deltas_wanted = torch.cat(sample.labels), torch.cat(sample.targets)
        positive = torch.where(labels > 0)[0]
        result: dict[str, Tensor] = {}
        for name, branch in zip(self.names, self, strict=True):
            boxes, seen = sample.boxes, torch.arange(len(labels), device=labels.device)
            if branch.config.only_regresses and self.config.training_proposals == "positives":
                if not len(positive):
                    # A background proposal would move the running statistics of batch norms.
                    result[f"{name}_regress"] = _nothing(branch, levels[0])
                    continue
                boxes, seen = [b[la > 0] for b, la in zip(sample.boxes, sample.labels, strict=True)], positive
            logits, deltas = branch(self.pooler(levels, boxes, branch.config.scale))
            if logits is not None:
                result[f"{name}_classify"] = branch.config.classify * self.classification.loss(logits, labels[seen])
            if deltas is not None:
                result[f"{name}_regress"] = branch.config.regress * box_loss(
                    deltas, labels[seen], deltas_wanted[seen], len(labels)
                )
        return result

    @torch.no_grad()
    def sample(self, proposals: list[Tensor], targets: list[dict[str, Tensor]]) -> Sample:
        """Match proposals (the objects themselves among them) to objects and draw `roi.sampled` per image."""
        boxes, labels, deltas = [], [], []
        for proposal, target in zip(proposals, targets, strict=True):
            truth = target["boxes"].to(proposal.dtype)
            candidates = torch.cat([proposal, truth])
            if not len(candidates):  # one box of background, for a loss of nothing would be 0 / 0
                candidates = proposal.new_tensor([[0.0, 0.0, 1.0, 1.0]])
            if len(truth):
                match = self.matcher(truth, candidates)
                label = target["labels"][match.clamp(min=0)] * (match >= 0)
                matched = truth[match.clamp(min=0)]
            else:
                label = torch.zeros(len(candidates), dtype=torch.int64, device=candidates.device)
                matched = candidates
            positive, negative = (mask[0].bool() for mask in self.sampler([label]))
            chosen = torch.cat([torch.where(positive)[0], torch.where(negative)[0]])
            boxes.append(candidates[chosen])
            labels.append(label[chosen])
            deltas.append(self.coder.encode_single(matched[chosen], candidates[chosen]))
        return Sample(boxes, labels, deltas)

    def scored(self, levels: list[Tensor], proposals: list[Tensor], options: InferenceOptions) -> Scored:
        """Score proposals; their boxes are computed when they are asked for.

        Args:
            levels: P2..P5.
            proposals: per image, (N, 4).
            options: whose scores count, whose boxes, and which proposals the later branches skip.
        """
        box_branch = self.box_branch(options)
        indices = [torch.arange(p.shape[0], device=p.device) for p in proposals]
        scores: list[Tensor] = []
        deltas: Tensor | None = None
        for i in self.score_branches(options):
            if len(scores) == 1 and options.score_floor:
                above = (scores[0][:, 1:] > options.score_floor).any(1)
                indices = [s[a] for s, a in zip(indices, above.split([s.shape[0] for s in indices]), strict=True)]
                scores, deltas = [scores[0][above]], None if deltas is None else deltas[above]
            logits, found = self.run(i, levels, [p[s] for p, s in zip(proposals, indices, strict=True)])
            assert logits is not None
            branch = self.branch_configs[i]
            if options.calibrated and branch.calibrated:
                logits = calibrated(logits, branch.temperature, branch.background_offset)
            scores.append(self.classification.scores(logits))
            deltas = found if i == box_branch else deltas
        proposals = [p[s] for p, s in zip(proposals, indices, strict=True)]
        staged = deltas is None and options.inference_proposals == "owners"
        if deltas is None and not staged:
            _, deltas = self.run(box_branch, levels, proposals)
        counts = [p.shape[0] for p in proposals]
        fused = list(fuse(scores, options.fusion).split(counts))
        known = None if deltas is None else list(deltas.split(counts))
        return HeadScores(proposals, indices, fused, staged, self, levels, box_branch, known)

    def run(self, branch: int, levels: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Logits and deltas of one branch for boxes (N, 4) of each image."""
        chosen = list(self)[branch]
        return chosen(self.pooler(levels, boxes, chosen.config.scale))


@dataclass
class HeadScores(Scored):
    """Proposals as a head has scored them, and what it takes to compute their boxes."""

    head: BoxHead
    levels: list[Tensor]
    box_branch: int
    deltas: list[Tensor] | None  # per image, of all its proposals; None: computed for those that are asked for

    def boxes(self, chosen: list[Tensor]) -> list[Tensor]:
        """Decode the boxes of chosen proposals, running the box branch on them where it has not seen them yet."""
        owners = [p[c] for p, c in zip(self.proposals, chosen, strict=True)]
        if self.deltas is None:
            _, found = self.head.run(self.box_branch, self.levels, owners)
        else:
            found = torch.cat([d[c] for d, c in zip(self.deltas, chosen, strict=True)])
        assert found is not None
        decoded = self.head.coder.decode_single(found, torch.cat(owners)).unflatten(1, (-1, 4))
        return list(decoded.split([o.shape[0] for o in owners]))


def calibrated(logits: Tensor, temperature: Tensor | float, background_offset: Tensor | float) -> Tensor:
    """Logits (N, C + 1), the background first, as `doublehead calibrate` fitted them."""
    return torch.cat([logits[:, :1] + background_offset, logits[:, 1:]], 1) / temperature


def box_loss(deltas: Tensor, labels: Tensor, wanted: Tensor, sampled: int) -> Tensor:
    """Smooth L1 (beta 1) on the positives, divided by the number of all sampled proposals.

    Args:
        deltas: (N, 4 (C + 1)), or (N, 4) where boxes are class-agnostic.
        labels: (N,), 0 for background.
        wanted: (N, 4).
        sampled: how many proposals were drawn in the batch.
    """
    positive = torch.where(labels > 0)[0]
    per_class = deltas.unflatten(1, (-1, 4))
    which = labels[positive] if per_class.shape[1] > 1 else torch.zeros_like(positive)
    loss = functional.smooth_l1_loss(per_class[positive, which], wanted[positive], reduction="sum")
    return loss / max(sampled, 1)


def _nothing(branch: Branch, like: Tensor) -> Tensor:
    """A loss of 0 that gives every parameter a gradient of 0, which DistributedDataParallel waits for."""
    return sum((p.flatten()[:0].sum() for p in branch.parameters()), start=like.new_zeros(()))
