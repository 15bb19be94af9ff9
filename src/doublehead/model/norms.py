"""Normalisation layers by name, for backbone, pyramid and trunks."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class Norm(Protocol):
    """Builds a norm for a number of channels."""

    def __call__(self, channels: int, /, *, eps: float = 1e-5) -> nn.Module:
        """Build the norm; `eps` applies to batch norms."""


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm without the check of the number of values, which is unknown on export."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class FrozenNorm(FrozenBatchNorm2d):
    """FrozenBatchNorm2d in one pass that keeps the input's type; torchvision's returns float32 under autocast."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.to(x.dtype).view(1, -1, 1, 1), x, scale.to(x.dtype).view(1, -1, 1, 1))


def group_norm(channels: int, /, *, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or the most that divide the channels. Ignores `eps`, which applies to batch norms."""
    return GroupNorm(math.gcd(32, channels), channels)


NORMS: dict[str, Norm] = {
    "frozen": lambda channels, /, *, eps=1e-5: FrozenNorm(channels, eps=eps),
    "batch": lambda channels, /, *, eps=1e-5: nn.BatchNorm2d(channels, eps=eps),
    "group": group_norm,
    "layer": lambda channels, /, *, eps=1e-5: GroupNorm(1, channels),
    "none": lambda channels, /, *, eps=1e-5: nn.Identity(),
}
