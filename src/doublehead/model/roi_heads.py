"""The second stage: sample proposals, pool, run the branches; losses in training, detections at inference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import box_iou

from doublehead.config import ModelConfig
from doublehead.model.boxes import Edges
from doublehead.model.branches import Branch
from doublehead.model.pooling import RoIPooler
from doublehead.model.postprocess import Boxes, detect, detect_in_one_round, fuse

RESOLUTION = 7


@dataclass
class Sample:
    """Proposals drawn for the loss, image by image, the positives of each first."""

    boxes: list[Tensor]  # per image, (N, 4) xyxy
    labels: list[Tensor]  # per image, (N,): 0 is background
    targets: list[Tensor]  # per image, (N, 4): box deltas to the matched object


class RoIHeads(nn.Module):
    """Branches over pooled proposals.

    Args:
        config: the branches and how proposals are sampled and post-processed.
        classes: number of classes C without the background.
    """

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        self.config = config.roi
        self.edges = Edges(config.inclusive_pixels)
        self.pooler = RoIPooler(RESOLUTION, config.roi.sampling_ratio, config.roi.aligned, self.edges)
        self.branches = nn.ModuleList(Branch(b, config, classes, RESOLUTION) for b in config.branches)
        self.names = config.branch_names
        self.choose(config.roi.score_branch, config.roi.box_branch)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.matcher = Matcher(config.roi.foreground_iou, config.roi.foreground_iou, allow_low_quality_matches=False)
        self.sampler = BalancedPositiveNegativeSampler(config.roi.sampled, config.roi.positive_fraction)

    def choose(self, score_branch: str | None, box_branch: str | None) -> None:
        """Whose scores count (None: all that classify, fused), and whose boxes (None: the largest regress weight's)."""
        weights = [branch.config.regress for branch in self]
        self.box_branch = self.names.index(box_branch) if box_branch else weights.index(max(weights))
        self.score_branches = [
            i for i, b in enumerate(self) if b.config.classify and score_branch in (None, self.names[i])
        ]

    def __iter__(self) -> Iterator[Branch]:
        for branch in self.branches:
            assert isinstance(branch, Branch)
            yield branch

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
            sees_positives = branch.config.only_regresses and self.config.training_proposals == "positives"
            boxes, seen = sample.boxes, torch.arange(len(labels), device=labels.device)
            if sees_positives and len(positive):
                boxes, seen = [b[la > 0] for b, la in zip(sample.boxes, sample.labels, strict=True)], positive
            elif sees_positives:
                # Without positives one background proposal runs at weight zero, so that every parameter has a
                # gradient on every rank: DistributedDataParallel waits for it.
                boxes, seen = _first_of_batch(sample.boxes), seen[:1]
            logits, deltas = branch(self.pooler(levels, boxes, branch.config.scale))
            if logits is not None:
                result[f"{name}_classify"] = branch.config.classify * functional.cross_entropy(logits, labels[seen])
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
                match = self.matcher(box_iou(truth, candidates))
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

    def detections(
        self, levels: list[Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """The best detections of each image, in input pixels; see `postprocess.detect`.

        Args:
            levels: P2..P5.
            proposals: per image, (N, 4).
            sizes: per image, (height, width) of its part of the input.
        """
        seen, scores, boxes, staged = self._asked(levels, proposals)
        results = detect(scores, boxes, sizes, self.config, staged, self.edges)
        for result, s in zip(results, seen, strict=True):
            result["proposals"] = s[result["proposals"]]
        return results

    def detections_in_one_round(
        self, levels: list[Tensor], proposals: Tensor, size: tuple[int, int], owners: int
    ) -> dict[str, Tensor]:
        """The best detections of one image, by steps that can be exported; see `postprocess.detect_in_one_round`.

        Args:
            levels: P2..P5.
            proposals: (N, 4).
            size: (height, width) of the image's part of the input.
            owners: how many proposals a branch that only regresses sees at most.
        """
        _, (scores,), boxes, staged = self._asked(levels, [proposals])
        return detect_in_one_round(scores, boxes, size, self.config, owners if staged else None, self.edges)

    def _asked(self, levels: list[Tensor], proposals: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Boxes, bool]:
        """Per image the proposals that count and their scores; what gives boxes; and whether by a run of its own."""
        seen, scores, deltas = self._scored(levels, proposals)
        proposals = [p[s] for p, s in zip(proposals, seen, strict=True)]
        counts = [p.shape[0] for p in proposals]
        staged = deltas is None and self.config.inference_proposals == "owners"
        if deltas is None and not staged:
            _, deltas = self._run(self.box_branch, levels, proposals)

        def boxes(chosen: list[Tensor]) -> list[Tensor]:
            owners = [p[c] for p, c in zip(proposals, chosen, strict=True)]
            if deltas is None:
                _, found = self._run(self.box_branch, levels, owners)
            else:
                found = torch.cat([d[c] for d, c in zip(deltas.split(counts), chosen, strict=True)])
            assert found is not None
            decoded = self.coder.decode_single(found, torch.cat(owners)).unflatten(1, (-1, 4))
            return list(decoded.split([o.shape[0] for o in owners]))

        return seen, list(scores.split(counts)), boxes, staged

    def _scored(self, levels: list[Tensor], proposals: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The proposals that count, as indices per image; their scores; their deltas if the box branch gives scores."""
        seen = [torch.arange(p.shape[0], device=p.device) for p in proposals]
        scores: list[Tensor] = []
        deltas: Tensor | None = None
        for i in self.score_branches:
            if len(scores) == 1 and self.config.score_floor:
                above = (scores[0][:, 1:] > self.config.score_floor).any(1)
                seen = [s[a] for s, a in zip(seen, above.split([s.shape[0] for s in seen]), strict=True)]
                scores, deltas = [scores[0][above]], None if deltas is None else deltas[above]
            logits, found = self._run(i, levels, [p[s] for p, s in zip(proposals, seen, strict=True)])
            assert logits is not None
            scores.append(logits.softmax(1))
            deltas = found if i == self.box_branch else deltas
        return seen, fuse(scores, self.config.fusion), deltas

    def _run(self, branch: int, levels: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Logits and deltas of one branch."""
        chosen = list(self)[branch]
        return chosen(self.pooler(levels, boxes, chosen.config.scale))


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


def _first_of_batch(boxes: list[Tensor]) -> list[Tensor]:
    """The boxes of a batch cut down to the very first one."""
    first = next((i for i, b in enumerate(boxes) if len(b)), 0)
    return [b[: int(i == first)] for i, b in enumerate(boxes)]
