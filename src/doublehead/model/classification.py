"""Classification: scores of class logits, and the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from doublehead.config import RoIConfig

RARE = 0.01
"""Initial score of every class under sigmoid. It is low because most proposals are background."""


class Classification(nn.Module):
    """Scores of class logits, and the classification loss.

    With `softmax`, classes and background compete. With `sigmoid`, each class has an independent score, and the
    background's logit is not used. With `focal_gamma`, each loss is multiplied by (1 - p)^gamma, where p is the score
    of the correct answer (Lin et al. 2017, without alpha).

    Args:
        config: kind of scores, and gamma.
        classes: number of classes C without the background.
    """

    weights: Tensor

    def __init__(self, config: RoIConfig, classes: int) -> None:
        super().__init__()
        self.sigmoid, self.gamma = config.classification == "sigmoid", config.focal_gamma
        self.weighted = False
        self.register_buffer("weights", torch.ones(classes + 1, dtype=torch.float32), persistent=False)

    def weigh(self, weights: Tensor) -> None:
        """Set class weights for the loss, (C + 1,) with the background first."""
        self.weights.copy_(weights)
        self.weighted = True

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (N, C + 1) to scores (N, C + 1), the background first."""
        if not self.sigmoid:
            return logits.softmax(1)
        scores = logits[:, 1:].sigmoid()
        return torch.cat([(1 - scores).prod(1, keepdim=True), scores], 1)

    def mean(self, logits: list[Tensor], rule: str) -> Tensor:
        """Combine the logits (N, C + 1) of the stages of a cascade.

        Args:
            logits: logits of each stage.
            rule: `logits`: the mean of logits; `probabilities`: logits whose scores are the mean of the stages' scores.
        """
        if len(logits) == 1:
            return logits[0]
        if rule == "logits":
            return torch.stack(logits).mean(0)
        scores = torch.stack([self.scores(each) for each in logits]).mean(0)
        limits = torch.finfo(scores.dtype)
        result = scores.clamp(min=limits.tiny).log()
        return result - (1 - scores).clamp(min=limits.eps).log() if self.sigmoid else result

    def loss(self, logits: Tensor, labels: Tensor, shares: Tensor | None = None) -> Tensor:
        """Mean classification loss over proposals.

        Args:
            logits: (N, C + 1).
            labels: (N,), 0 for background.
            shares: (N,) weight of each proposal in the mean; None: 1 / N.
        """
        if shares is None and not (self.sigmoid or self.gamma or self.weighted):
            return functional.cross_entropy(logits, labels)
        each = self._of_classes(logits, labels) if self.sigmoid else self._of_proposals(logits, labels)
        each = each * self.weights.to(each)[labels]
        return each.mean() if shares is None else (each * shares).sum()

    def _of_proposals(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = functional.cross_entropy(logits, labels, reduction="none")
        return loss * (1 - (-loss).exp()) ** self.gamma if self.gamma else loss

    def _of_classes(self, logits: Tensor, labels: Tensor) -> Tensor:
        wanted = functional.one_hot(labels, logits.shape[1])[:, 1:].to(logits)
        loss = functional.binary_cross_entropy_with_logits(logits[:, 1:], wanted, reduction="none")
        return (loss * (1 - (-loss).exp()) ** self.gamma if self.gamma else loss).sum(1)
