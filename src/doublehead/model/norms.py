"""Normalisation layers by name, for backbone, pyramid and trunks."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
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


class BatchRenorm(nn.BatchNorm2d):
    """Batch norm that normalises in training as it does in inference (Ioffe, *Batch Renormalization*, algorithm 1).

    The batch's statistics are corrected to the running ones, up to limits that open over the first updates. For
    batches whose values depend on each other, such as RoIs of few objects.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    OPENING = (50, 200)
    """Updates after which the limits begin to open, and after which they are open."""
    LIMITS = (3.0, 5.0)
    """Most that the scale changes, as a factor, and the shift, in standard deviations (section 5)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        if not self.training or not len(x):
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        with torch.no_grad():
            first, last = self.OPENING
            open_by = ((self.num_batches_tracked - first) / (last - first)).clamp(0, 1)
            most, furthest = 1 + open_by * (self.LIMITS[0] - 1), open_by * self.LIMITS[1]
            var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
            running = (self.running_var + self.eps).sqrt()
            scale = ((var + self.eps).sqrt() / running).clamp(1 / most, most)
            shift = ((mean - self.running_mean) / running).clamp(-furthest, furthest)
        weight, bias = self.weight * scale, self.bias + self.weight * shift
        momentum = self.momentum or 0.0
        return functional.batch_norm(x, self.running_mean, self.running_var, weight, bias, True, momentum, self.eps)


def group_norm(channels: int, /, *, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or the most that divide the channels. Ignores `eps`, which applies to batch norms."""
    return GroupNorm(math.gcd(32, channels), channels)


NORMS: dict[str, Norm] = {
    "frozen": lambda channels, /, *, eps=1e-5: FrozenNorm(channels, eps=eps),
    "batch": lambda channels, /, *, eps=1e-5: nn.BatchNorm2d(channels, eps=eps),
    "renorm": lambda channels, /, *, eps=1e-5: BatchRenorm(channels, eps=eps),
    "group": group_norm,
    "layer": lambda channels, /, *, eps=1e-5: GroupNorm(1, channels),
    "none": lambda channels, /, *, eps=1e-5: nn.Identity(),
}
