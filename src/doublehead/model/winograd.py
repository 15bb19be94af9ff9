"""3x3 convolutions with a quarter of the multiplications (Lavin and Gray, *Fast Algorithms for CNNs*, section 4.3).

A tile of 4x4 outputs depends on 6x6 inputs. Linear transforms map the inputs of a tile, and the weights, to 36 places.
Each place is then a matrix product over channels, and a third transform maps the 36 products to the 16 outputs: 36
multiplications per pair of channels instead of 144.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

SIDE = 4
"""Side of a tile of outputs."""

INPUTS = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
INPUTS += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
WEIGHTS = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
WEIGHTS += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
OUTPUTS = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
"""The transforms along one axis, from the interpolation points 0, 1, -1, 2, -2 and infinity."""

LEAST_CHANNELS = 128
"""Minimum channels: with fewer, the transforms cost more than the products save."""

TILES = 256
"""Tiles transformed at once: with 256 channels they take 9 MB, which fits into the cache."""


class Winograd(nn.Conv2d):
    """A 3x3 convolution for inference on CPUs. When compiled, exported or autocast, it runs as an ordinary one.

    Args:
        conv: a convolution that `suits`; later changes to its weights have no effect.
    """

    into: Tensor
    kernels: Tensor
    back: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        # Along both axes at once: the Kronecker product of a transform with itself.
        into, weights, back = (torch.kron(t, t) for t in map(conv.weight.new_tensor, (INPUTS, WEIGHTS, OUTPUTS)))
        taps = conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 1).flatten(1)  # (9, C D)
        self.register_buffer("into", into, persistent=False)
        self.register_buffer("kernels", (weights @ taps).unflatten(1, (self.in_channels, -1)), persistent=False)
        self.register_buffer("back", back, persistent=False)

    @staticmethod
    def suits(layer: nn.Module) -> bool:
        """Whether a layer is a convolution that this class supports and accelerates."""
        return (
            type(layer) is nn.Conv2d
            and layer.in_channels >= LEAST_CHANNELS
            and (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
            and (layer.groups, layer.padding_mode) == (1, "zeros")
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, H, W), channels last."""
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        images, _, height, width = x.shape
        down, across = -(-height // SIDE), -(-width // SIDE)
        x = x.permute(0, 2, 3, 1)
        result = x.new_empty(images, down, SIDE, across, SIDE, self.out_channels)
        rows = max(1, TILES // max(1, images * across))
        for start in range(0, down, rows):
            part = result[:, start : start + rows]
            tiles = _tiles(x, start, part.shape[1], across).reshape(-1, len(self.into), self.in_channels)
            places = (self.into @ tiles).transpose(0, 1)  # (36, tiles, C)
            outputs = self.back @ torch.bmm(places, self.kernels).flatten(1)  # (16, tiles D)
            outputs = outputs.view(SIDE, SIDE, *part.shape[:2], across, self.out_channels).permute(2, 3, 0, 4, 1, 5)
            if self.bias is None:
                part.copy_(outputs)
            else:
                torch.add(outputs, self.bias, out=part)
        result = result.view(images, down * SIDE, across * SIDE, self.out_channels)
        return result[:, :height, :width].permute(0, 3, 1, 2)


def _tiles(x: Tensor, start: int, rows: int, across: int) -> Tensor:
    """Extract rows of overlapping tiles: (N, H, W, C) to (N, rows, across, 6, 6, C)."""
    top, bottom, right = start * SIDE - 1, (start + rows) * SIDE + 1, across * SIDE + 1
    edges = (0, 0, 1, right - x.shape[2], max(-top, 0), max(bottom - x.shape[1], 0))
    strip = pad(x[:, max(top, 0) : bottom], edges)
    return strip.unfold(1, SIDE + 2, SIDE).unfold(2, SIDE + 2, SIDE).permute(0, 1, 2, 4, 5, 3)


def use_winograd(module: nn.Module) -> None:
    """Replace every suitable convolution in a module by `Winograd`."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is not None and Winograd.suits(child):
                assert isinstance(child, nn.Conv2d)
                parent._modules[name] = Winograd(child)
