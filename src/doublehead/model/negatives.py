"""Selection of the background proposals that a branch classifies in training, if not all sampled ones."""

from __future__ import annotations

import torch
from torch import Tensor

from doublehead.model.parts import BranchConfig


def few_negatives(labels: list[Tensor], config: BranchConfig, background: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Select all positives of each image, the hardest negatives, and random further negatives.

    Random negatives are weighted to represent all that were not selected, so the expected loss is the mean over the
    whole sample. Without random negatives, unselected proposals count with a loss of zero.

    Args:
        labels: per image, (N,), 0 for background.
        config: number of negatives, and how many of them are hard.
        background: (sum of N,) background scores of an earlier branch; the hardest negatives have the lowest.

    Returns:
        Per image the indices of the selected proposals (M,), positives first; and (sum of M,) their weights in the mean
        of the loss.
    """
    assert config.negatives is not None
    counts = [len(each) for each in labels]
    scores = [None] * len(counts) if background is None else background.split(counts)
    places, weights = [], []
    for label, score in zip(labels, scores, strict=True):
        negative = torch.where(label == 0)[0]
        negative = negative[torch.randperm(len(negative), device=label.device)]
        hard = min(config.hard_negatives, len(negative))
        if hard:
            assert score is not None
            hardest = score[negative].topk(hard, largest=False).indices
            easier = torch.ones_like(negative, dtype=torch.bool).index_fill(0, hardest, False)
            negative = torch.cat([negative[hardest], negative[easier]])
        chosen = negative[: config.negatives]
        positive = torch.where(label > 0)[0]
        weight = torch.ones(len(positive) + len(chosen), dtype=torch.float32, device=label.device)
        weight[len(positive) + hard :] = (len(negative) - hard) / max(len(chosen) - hard, 1)
        places.append(torch.cat([positive, chosen]))
        weights.append(weight)
    return places, torch.cat(weights) / sum(counts)
