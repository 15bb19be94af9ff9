"""The second stage: a box head, or a cascade of them, the last of which outputs the detections.

In a cascade, each head refines the boxes that the next one scores. Logits or scores of a branch are averaged over the
heads with a branch of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from doublehead.config import InferenceOptions, ModelConfig
from doublehead.model.box_head import BoxHead, Sample
from doublehead.model.boxes import Edges, Size
from doublehead.model.branches import Branch
from doublehead.model.postprocess import Scored, detect, detect_in_fixed_sizes, detect_in_one_round


class RoIHeads(nn.Module):
    """The box heads of a detector.

    Args:
        config: the branches and how proposals are sampled and post-processed.
        classes: number of classes C without the background.
    """

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        self.smallest_side = config.roi.smallest_side
        self.edges = Edges(config.inclusive_pixels)
        self.heads = nn.ModuleList(BoxHead(config, classes, stage) for stage in config.stages)
        self.sample_once = config.cascade is not None and config.cascade.sampling == "once"

    @property
    def each(self) -> list[BoxHead]:
        """All heads, first to last."""
        return [head for head in self.heads if isinstance(head, BoxHead)]

    @property
    def last(self) -> BoxHead:
        """The head that outputs the detections."""
        return self.each[-1]

    def __iter__(self) -> Iterator[Branch]:
        """The branches of all heads."""
        for head in self.each:
            yield from head

    def weigh_classes(self, weights: Tensor) -> None:
        """Set class weights for the loss, (C + 1,) with the background first."""
        for head in self.each:
            head.classification.weigh(weights)

    def losses(
        self,
        levels: list[Tensor],
        proposals: list[Tensor],
        targets: list[dict[str, Tensor]],
        sizes: list[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Compute the losses of all heads; in a cascade, their names have the prefix `stage1_`, `stage2_` ...

        Args:
            levels: P2..P5.
            proposals: per image, (N, 4).
            targets: per image, `boxes` (M, 4) and `labels` (M,).
            sizes: per image, (height, width) of its part of the input.
        """
        result: dict[str, Tensor] = {}
        for number, head in enumerate(self.each, 1):
            draw = head.labelled if self.sample_once and number > 1 else head.sample
            sample = draw(proposals, targets)
            losses, deltas = head.losses(levels, sample)
            prefix = f"stage{number}_" if len(self.heads) > 1 else ""
            result |= {prefix + name: loss for name, loss in losses.items()}
            if head is not self.last:
                assert deltas is not None
                proposals = self._refined(head, deltas.detach(), sample, sizes)
        return result

    @torch.no_grad()
    def _refined(self, head: BoxHead, deltas: Tensor, sample: Sample, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Boxes of a sample refined by a head, without empty boxes and those that the next head will add again."""
        result = []
        for boxes, objects, size in zip(head.decode(deltas, sample.boxes), sample.objects, sizes, strict=True):
            boxes = self.edges.clip(boxes, size)
            keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
            result.append(boxes[keep if self.sample_once else keep & ~objects])
        return result

    def logits(
        self, levels: list[Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]], options: InferenceOptions
    ) -> dict[str, Tensor]:
        """Logits of the last head's classifying branches in use, by name, averaged over all heads: (sum of N, C + 1).

        Args:
            levels: P2..P5.
            proposals: per image, (N, 4), the input of the first head.
            sizes: per image, (height, width) of its part of the input.
            options: branches whose scores and boxes are used.
        """
        refined, earlier = self._refined_to_last(levels, proposals, sizes, options)
        result = {}
        for place in self.last.score_branches(options):
            logits, _ = self.last.run(place, levels, refined)
            assert logits is not None
            result[self.last.names[place]] = self.last.averaged(place, logits, earlier)
        return result

    def _scored(
        self, levels: list[Tensor], proposals: list[Tensor], sizes: Sequence[Size], options: InferenceOptions
    ) -> Scored:
        """Refine proposals by all heads but the last, and score them by all."""
        refined, earlier = self._refined_to_last(levels, proposals, sizes, options)
        return self.last.scored(levels, refined, options, earlier)

    def _refined_to_last(
        self, levels: list[Tensor], proposals: list[Tensor], sizes: Sequence[Size], options: InferenceOptions
    ) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Proposals for the last head, and their logits from earlier heads, by branch."""
        earlier: dict[str, list[Tensor]] = {}
        for head in self.each[:-1]:
            boxes, logits = head.refine(levels, proposals, options)
            proposals = [self.edges.clip(b, size) for b, size in zip(boxes, sizes, strict=True)]
            for name, found in logits.items():
                earlier.setdefault(name, []).append(found)
        return proposals, earlier

    def detections(
        self,
        levels: list[Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        options: InferenceOptions,
    ) -> list[dict[str, Tensor]]:
        """Detect objects in each image, in input pixels; see `postprocess.detect`.

        Args:
            levels: P2..P5.
            proposals: per image, (N, 4).
            sizes: per image, (height, width) of its part of the input.
            options: thresholds, and the branches whose scores and boxes are used.
        """
        scored = self._scored(levels, proposals, sizes, options)
        return detect(scored, sizes, options, self.edges, self.smallest_side)

    def detections_in_one_round(
        self,
        levels: list[Tensor],
        proposals: Tensor,
        size: tuple[int, int],
        owners: int,
        options: InferenceOptions,
    ) -> dict[str, Tensor]:
        """Detect objects in one image by exportable operations; see `postprocess.detect_in_one_round`.

        Args:
            levels: P2..P5.
            proposals: (N, 4).
            size: (height, width) of the image's part of the input.
            owners: maximum proposals passed to a box-only branch.
            options: as in `detections`.
        """
        scored = self._scored(levels, [proposals], [size], options)
        most = owners if scored.staged else None
        return detect_in_one_round(scored, size, options, most, self.edges, self.smallest_side)

    def detections_in_fixed_sizes(
        self,
        levels: list[Tensor],
        proposals: list[Tensor],
        sizes: Sequence[Size],
        owners: int,
        options: InferenceOptions,
    ) -> list[dict[str, Tensor]]:
        """Detect objects in each image by operations of fixed sizes; see `postprocess.detect_in_fixed_sizes`.

        Args:
            levels: P2..P5.
            proposals: per image, (N, 4), equally many per image; empty boxes are padding.
            sizes: per image, (height, width) of its part of the input.
            owners: proposals of an image passed to a box-only branch.
            options: as in `detections`; without a score floor.
        """
        scored = self._scored(levels, proposals, sizes, options)
        real = [(boxes[:, 2:] > boxes[:, :2]).all(1) for boxes in proposals]
        most = owners if scored.staged else None
        return detect_in_fixed_sizes(scored, real, sizes, options, most, self.edges, self.smallest_side)
