"""The second stage: box heads one after another, the last of which gives the detections."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from doublehead.config import InferenceOptions, ModelConfig
from doublehead.model.box_head import BoxHead
from doublehead.model.boxes import Edges
from doublehead.model.branches import Branch
from doublehead.model.postprocess import detect, detect_in_one_round


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
        self.heads = nn.ModuleList([BoxHead(config, classes)])

    @property
    def last(self) -> BoxHead:
        """The head that gives the detections."""
        head = self.heads[-1]
        assert isinstance(head, BoxHead)
        return head

    def __iter__(self) -> Iterator[Branch]:
        """The branches of all heads."""
        for head in self.heads:
            assert isinstance(head, BoxHead)
            yield from head

    def weigh_classes(self, weights: Tensor) -> None:
        """Let each class count by its weight in the loss, (C + 1,) with the background first."""
        for head in self.heads:
            assert isinstance(head, BoxHead)
            head.classification.weigh(weights)

    def losses(
        self, levels: list[Tensor], proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Losses of all heads, as `BoxHead.losses`."""
        return self.last.losses(levels, proposals, targets)

    def detections(
        self,
        levels: list[Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        options: InferenceOptions,
    ) -> list[dict[str, Tensor]]:
        """The best detections of each image, in input pixels; see `postprocess.detect`.

        Args:
            levels: P2..P5.
            proposals: per image, (N, 4).
            sizes: per image, (height, width) of its part of the input.
            options: thresholds, and whose scores and boxes count.
        """
        scored = self.last.scored(levels, proposals, options)
        return detect(scored, sizes, options, self.edges, self.smallest_side)

    def detections_in_one_round(
        self,
        levels: list[Tensor],
        proposals: Tensor,
        size: tuple[int, int],
        owners: int,
        options: InferenceOptions,
    ) -> dict[str, Tensor]:
        """The best detections of one image, by steps that can be exported; see `postprocess.detect_in_one_round`.

        Args:
            levels: P2..P5.
            proposals: (N, 4).
            size: (height, width) of the image's part of the input.
            owners: how many proposals a branch that only regresses sees at most.
            options: as of `detections`.
        """
        scored = self.last.scored(levels, [proposals], options)
        most = owners if scored.staged else None
        return detect_in_one_round(scored, size, options, most, self.edges, self.smallest_side)
