"""Which background proposals a branch classifies in training, where it does not classify all that were sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from doublehead.model.parts import BranchConfig


def few_negatives(labels: list[Tensor], config: BranchConfig, background: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Choose all positives of each image, the hardest negatives, and others at random.

    Those drawn at random stand for all that are left out, so the expected loss is the mean over the whole sample.
    Where none is drawn at random, those left out count as classified without a loss.

    Args:
        labels: per image, (N,), 0 for background.
        config: how many negatives, and how many of them hard.
        background: (sum of N,) scores of the background by an earlier branch: the hardest negatives have the lowest.

    Returns:
        Per image the places of the chosen proposals (M,), positives first; and (sum of M,) the weight of each in the
        mean of the loss.
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
