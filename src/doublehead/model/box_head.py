"""A box head: sample proposals, pool them for each branch, run the branches; returns losses, or scores and boxes.

A detector has a single box head or a cascade, in which the boxes of each stage are the proposals of the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.ops import generalized_box_iou_loss

from doublehead.config import InferenceOptions, ModelConfig
from doublehead.model.boxes import Edges
from doublehead.model.branches import Branch
from doublehead.model.classification import Classification
from doublehead.model.matching import BoxMatcher
from doublehead.model.negatives import few_negatives
from doublehead.model.parts import branch_names
from doublehead.model.pooling import RoIPooler
from doublehead.model.postprocess import Scored, average, fuse
from doublehead.model.stages import Stage

RESOLUTION = 7
LARGEST_RATIO = math.log(1000 / 16)
"""Maximum logarithm of the ratio of a box's side to its proposal's side, as in torchvision's BoxCoder."""

NO_EARLIER: Mapping[str, list[Tensor]] = {}


@dataclass
class Sample:
    """Proposals of each image used in the loss. If they were sampled, positives come first."""

    boxes: list[Tensor]  # per image, (N, 4) xyxy
    labels: list[Tensor]  # per image, (N,): 0 is background
    targets: list[Tensor]  # per image, (N, 4): box deltas to the matched object
    objects: list[Tensor]  # per image, (N,) bool: boxes of objects rather than proposals
    to_regress: Sample | None = None  # sample of box-only branches, if it differs

    def positives(self) -> Sample:
        """The proposals with an object."""
        return self.only([label > 0 for label in self.labels])

    def only(self, keep: list[Tensor]) -> Sample:
        """Select proposals of each image by mask or indices."""

        def chosen(values: list[Tensor]) -> list[Tensor]:
            return [value[k] for value, k in zip(values, keep, strict=True)]

        return Sample(chosen(self.boxes), chosen(self.labels), chosen(self.targets), chosen(self.objects))

    def __len__(self) -> int:
        return sum(len(labels) for labels in self.labels)


class BoxHead(nn.Module):
    """Branches over pooled proposals, with the matcher that labels proposals and the coder of their boxes.

    Args:
        config: settings of trunks and of the sampling of proposals.
        classes: number of classes C without the background.
        stage: the branches and their training settings.
    """

    def __init__(self, config: ModelConfig, classes: int, stage: Stage) -> None:
        super().__init__()
        self.config = config.roi
        self.stage = stage
        self.names = branch_names(stage.branches)
        self.mean_of = config.cascade.scores if config.cascade else "logits"
        self.pooler = RoIPooler(
            RESOLUTION, config.roi.sampling_ratio, config.roi.aligned, Edges(config.inclusive_pixels), config.strides
        )
        self.branches = nn.ModuleList(Branch(b, config, classes, RESOLUTION) for b in stage.branches)
        self.classification = Classification(config.roi, classes)
        dx, dy, dw, dh = stage.deviations
        self.coder = BoxCoder((1 / dx, 1 / dy, 1 / dw, 1 / dh))
        self.matcher = BoxMatcher(stage.foreground_iou, stage.foreground_iou)
        self.sampler = BalancedPositiveNegativeSampler(config.roi.sampled, config.roi.positive_fraction)
        self.regress_matcher = None if stage.regress_iou is None else BoxMatcher(stage.regress_iou, stage.regress_iou)

    def __iter__(self) -> Iterator[Branch]:
        for branch in self.branches:
            assert isinstance(branch, Branch)
            yield branch

    def score_branches(self, options: InferenceOptions) -> list[int]:
        """Indices of the branches whose scores are used."""
        return [i for i, b in enumerate(self) if b.config.classify and options.score_branch in (None, self.names[i])]

    def box_branches(self, options: InferenceOptions | None = None) -> list[int]:
        """Indices of the branches whose boxes are used: the one that the options name, or those of `roi.box_fusion`."""
        weights = [branch.config.regress for branch in self]
        for place, name in enumerate(self.names):
            if options and name == options.box_branch and weights[place]:
                return [place]
        if (options or self.config).box_fusion == "average":
            return [place for place, weight in enumerate(weights) if weight]
        return [weights.index(max(weights))]

    def losses(self, levels: list[Tensor], sample: Sample) -> tuple[dict[str, Tensor], Tensor | None]:
        """Losses of all branches, weighted (paper, equations 2 to 4).

        Args:
            levels: P2..P5.
            sample: result of `sample` or `labelled`.

        Returns:
            The losses by name; and the deltas whose boxes are used, if their branches ran on the whole sample.
        """
        box_branches, box_deltas = self.box_branches(), list[Tensor]()
        result: dict[str, Tensor] = {}
        earlier: Tensor | None = None  # logits of the whole sample, by the first branch that classifies it
        for i, (name, branch) in enumerate(zip(self.names, self, strict=True)):
            seen, refines = sample, self.stage.refines and i in box_branches
            if branch.config.only_regresses and self.config.training_proposals == "positives" and not refines:
                seen = sample.positives() if sample.to_regress is None else sample.to_regress
                if not len(seen):
                    # A background proposal would move the running statistics of batch norms.
                    result[f"{name}_regress"] = _nothing(branch, levels[0])
                    continue
            shares = None
            if branch.config.negatives is not None and not refines:
                background = None if earlier is None else self.classification.scores(earlier)[:, 0]
                keep, shares = few_negatives(sample.labels, branch.config, background)
                seen = sample.only(keep)
            logits, deltas = branch(self._pooled_to_learn(levels, seen.boxes, branch.config.scale))
            labels, factor = torch.cat(seen.labels), self.stage.loss_weight
            if logits is not None:
                loss = self.classification.loss(logits, labels, shares)
                if earlier is None and seen is sample:
                    earlier = logits.detach()
                result[f"{name}_classify"] = factor * branch.config.classify * loss
            if deltas is not None:
                loss = self._box_loss(deltas, labels, torch.cat(seen.targets), len(sample))
                result[f"{name}_regress"] = factor * branch.config.regress * loss
                if i in box_branches and seen is sample:
                    box_deltas.append(deltas)
        return result, average(box_deltas) if len(box_deltas) == len(box_branches) else None

    def _box_loss(self, deltas: Tensor, labels: Tensor, wanted: Tensor, sampled: int) -> Tensor:
        """Box loss selected by `roi.box_loss`."""
        if self.config.box_loss == "giou":
            return giou_loss(deltas, labels, wanted, sampled, self.stage.deviations)
        return box_loss(deltas, labels, wanted, sampled, self.stage.beta)

    def _pooled_to_learn(self, levels: list[Tensor], boxes: list[Tensor], scale: float) -> Tensor:
        pooled, factor = self.pooler(levels, boxes, scale), self.stage.roi_gradient
        if factor != 1 and pooled.requires_grad:
            pooled.register_hook(lambda gradient: gradient * factor)
        return pooled

    @torch.no_grad()
    def sample(self, proposals: list[Tensor], targets: list[dict[str, Tensor]]) -> Sample:
        """Match proposals, to which the objects' boxes are added, to objects and sample `roi.sampled` per image.

        If box-only branches use other positives, `to_regress` holds them: per image, at most as many as the maximum of
        positives in the sample.
        """
        with_objects = [torch.cat([p, t["boxes"].to(p.dtype)]) for p, t in zip(proposals, targets, strict=True)]
        everything = self.labelled(with_objects, targets)
        chosen = []
        for label, proposal, objects in zip(everything.labels, proposals, everything.objects, strict=True):
            positive, negative = (mask[0].bool() for mask in self.sampler([label]))
            chosen.append(torch.cat([torch.where(positive)[0], torch.where(negative)[0]]))
            objects[len(proposal) :] = label[len(proposal) :] > 0
        result = everything.only(chosen)
        if self.regress_matcher is not None:
            own = self.labelled(with_objects, targets, self.regress_matcher)
            most = int(self.config.sampled * self.config.positive_fraction)
            places = [torch.where(label > 0)[0] for label in own.labels]
            result.to_regress = own.only([p[torch.randperm(len(p), device=p.device)[:most]] for p in places])
        return result

    @torch.no_grad()
    def labelled(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]], matcher: BoxMatcher | None = None
    ) -> Sample:
        """Match all proposals to objects, with the given matcher or else the head's."""
        result, matcher = Sample([], [], [], []), matcher or self.matcher
        for proposal, target in zip(proposals, targets, strict=True):
            truth = target["boxes"].to(proposal.dtype)
            # An image without boxes gets one of background: an empty loss would be 0 / 0.
            boxes = proposal if len(proposal) else proposal.new_tensor([[0.0, 0.0, 1.0, 1.0]])
            if len(truth):
                match = matcher(truth, boxes)
                label = target["labels"][match.clamp(min=0)] * (match >= 0)
                matched = truth[match.clamp(min=0)]
            else:
                label = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
                matched = boxes
            result.boxes.append(boxes)
            result.labels.append(label)
            result.targets.append(self.coder.encode_single(matched, boxes))
            result.objects.append(torch.zeros_like(label, dtype=torch.bool))
        return result

    def refine(
        self, levels: list[Tensor], proposals: list[Tensor], options: InferenceOptions
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Run the branches on all proposals, for the next stage of a cascade.

        Returns:
            Per image the refined boxes (N, 4); and the logits (sum of N, C + 1) of the branches whose scores are used.
        """
        logits: dict[str, Tensor] = {}
        box_deltas: list[Tensor] = []
        box_branches, scoring = self.box_branches(options), self.score_branches(options)
        for i in sorted({*box_branches, *scoring}):
            found, deltas = self.run(i, levels, proposals)
            if i in scoring:
                assert found is not None
                logits[self.names[i]] = found
            if i in box_branches:
                assert deltas is not None
                box_deltas.append(deltas)
        return self.decode(average(box_deltas), proposals), logits

    def decode(self, deltas: Tensor, boxes: list[Tensor]) -> list[Tensor]:
        """Decode class-agnostic deltas (sum of N, 4) of each image's boxes (N, 4)."""
        decoded = self.coder.decode_single(deltas, torch.cat(boxes))
        return list(decoded.split([b.shape[0] for b in boxes]))

    def scored(
        self,
        levels: list[Tensor],
        proposals: list[Tensor],
        options: InferenceOptions,
        earlier: Mapping[str, list[Tensor]] = NO_EARLIER,
    ) -> Scored:
        """Score proposals. Boxes are computed on demand.

        Args:
            levels: P2..P5.
            proposals: per image, (N, 4).
            options: branches whose scores and boxes are used, and the score below which later branches skip proposals.
            earlier: logits (sum of N, C + 1) of earlier stages by branch name, averaged with those of the same branch
                in this stage.
        """
        box_branches = self.box_branches(options)
        indices = [torch.arange(p.shape[0], device=p.device) for p in proposals]
        scores: list[Tensor] = []
        deltas: dict[int, Tensor] = {}  # by branch
        for i in self.score_branches(options):
            if len(scores) == 1 and options.score_floor:
                above = (scores[0][:, 1:] > options.score_floor).any(1)
                indices = [s[a] for s, a in zip(indices, above.split([s.shape[0] for s in indices]), strict=True)]
                scores, deltas = [scores[0][above]], {place: found[above] for place, found in deltas.items()}
                earlier = {name: [x[above] for x in logits] for name, logits in earlier.items()}
            logits, found = self.run(i, levels, [p[s] for p, s in zip(proposals, indices, strict=True)])
            assert logits is not None
            logits, branch = self.averaged(i, logits, earlier), self.stage.branches[i]
            if options.calibrated and branch.calibrated:
                logits = calibrated(logits, branch.temperature, branch.background_offset)
            scores.append(self.classification.scores(logits))
            if i in box_branches and found is not None:
                deltas[i] = found
        proposals = [p[s] for p, s in zip(proposals, indices, strict=True)]
        missing = [i for i in box_branches if i not in deltas]
        if options.inference_proposals == "all":
            deltas |= {i: self.deltas(i, levels, proposals) for i in missing}
            missing = []
        counts = [p.shape[0] for p in proposals]
        fused = list(fuse(scores, options.fusion).split(counts))
        known = [list(found.split(counts)) for found in deltas.values()]
        return HeadScores(proposals, indices, fused, bool(missing), self, levels, known, missing)

    def averaged(self, branch: int, logits: Tensor, earlier: Mapping[str, list[Tensor]]) -> Tensor:
        """Average the logits (N, C + 1) of a branch with those of the same branch in earlier stages."""
        return self.classification.mean([*earlier.get(self.names[branch], []), logits], self.mean_of)

    def run(self, branch: int, levels: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Logits and deltas of one branch for boxes (N, 4) of each image."""
        chosen = list(self)[branch]
        return chosen(self.pooler(levels, boxes, chosen.config.scale))

    def deltas(self, branch: int, levels: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Deltas of one branch that regresses; see `run`."""
        _, deltas = self.run(branch, levels, boxes)
        assert deltas is not None
        return deltas


@dataclass
class HeadScores(Scored):
    """Proposals scored by a box head, with the inputs for computing their boxes."""

    head: BoxHead
    levels: list[Tensor]
    known: list[list[Tensor]]  # per box branch that ran, and per image, the deltas of all its proposals
    missing: list[int]  # box branches that run on the proposals that are asked for

    def boxes(self, chosen: list[Tensor]) -> list[Tensor]:
        """Decode the boxes of the chosen proposals, running the missing branches on them."""
        owners = [p[c] for p, c in zip(self.proposals, chosen, strict=True)]
        found = [torch.cat([d[c] for d, c in zip(deltas, chosen, strict=True)]) for deltas in self.known]
        found += [self.head.deltas(i, self.levels, owners) for i in self.missing]
        decoded = self.head.coder.decode_single(average(found), torch.cat(owners)).unflatten(1, (-1, 4))
        return list(decoded.split([o.shape[0] for o in owners]))


def calibrated(logits: Tensor, temperature: Tensor | float, background_offset: Tensor | float) -> Tensor:
    """Apply the temperature and offset of `doublehead calibrate` to logits (N, C + 1), background first.

    Subtracting the offset from the logits of all classes equals adding it to the background's under softmax.
    """
    return torch.cat([logits[:, :1], logits[:, 1:] - background_offset], 1) / temperature


def box_loss(deltas: Tensor, labels: Tensor, wanted: Tensor, sampled: int, beta: float = 1.0) -> Tensor:
    """Smooth L1 on the positives, divided by the number of all sampled proposals.

    Args:
        deltas: (N, 4 (C + 1)), or (N, 4) where boxes are class-agnostic.
        labels: (N,), 0 for background.
        wanted: (N, 4).
        sampled: number of proposals sampled in the batch.
        beta: absolute error at which the loss changes from quadratic to linear; 0: L1.
    """
    positive = torch.where(labels > 0)[0]
    found = _of_labels(deltas, labels, positive)
    loss = functional.smooth_l1_loss(found, wanted[positive], reduction="sum", beta=beta)
    return loss / max(sampled, 1)


def giou_loss(
    deltas: Tensor, labels: Tensor, wanted: Tensor, sampled: int, deviations: tuple[float, float, float, float]
) -> Tensor:
    """1 - GIoU (Rezatofighi et al.) on the positives, divided by the number of all sampled proposals.

    GIoU is invariant to translating and scaling both boxes alike, so deltas are decoded against the unit box.

    Args:
        deltas: as in `box_loss`.
        labels: (N,), 0 for background.
        wanted: (N, 4).
        sampled: number of proposals sampled in the batch.
        deviations: standard deviations that deltas are divided by.
    """
    positive = torch.where(labels > 0)[0]
    found, truth = (_unit_boxes(d, deviations) for d in (_of_labels(deltas, labels, positive), wanted[positive]))
    return generalized_box_iou_loss(found, truth, reduction="sum") / max(sampled, 1)


def _unit_boxes(deltas: Tensor, deviations: tuple[float, float, float, float]) -> Tensor:
    """Decode deltas (N, 4) relative to a unit box at the origin."""
    offsets, sizes = (deltas * deltas.new_tensor(deviations)).split(2, 1)
    sides = sizes.clamp(max=LARGEST_RATIO).exp()
    return torch.cat([offsets - sides / 2, offsets + sides / 2], 1)


def _of_labels(deltas: Tensor, labels: Tensor, positive: Tensor) -> Tensor:
    """Deltas (P, 4) of the positives for their classes."""
    per_class = deltas.unflatten(1, (-1, 4))
    which = labels[positive] if per_class.shape[1] > 1 else torch.zeros_like(positive)
    return per_class[positive, which]


def _nothing(branch: Branch, like: Tensor) -> Tensor:
    """A loss of 0 that gives every parameter a gradient of 0, which DistributedDataParallel waits for."""
    return sum((p.flatten()[:0].sum() for p in branch.parameters()), start=like.new_zeros(()))
