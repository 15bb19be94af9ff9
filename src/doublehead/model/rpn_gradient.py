"""Sparse gradient of an RPN head.

The RPN's loss samples a few hundred anchors per image, so the gradient is zero at nearly all positions. A dense
backward pass through the 3x3 convolution would still cost twice its forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d


def rpn_outputs(x: Tensor, conv: nn.Conv2d, classifier: nn.Conv2d, regressor: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Compute objectness and deltas of one map: `conv`, ReLU, then `classifier` and `regressor`.

    Gradients equal those of autograd up to rounding, in the type of the weights.

    Args:
        x: (B, C, H, W).
        conv: 3x3 with padding 1, C to C' channels.
        classifier: 1x1, C' to A channels.
        regressor: 1x1, C' to 4 A channels.

    Returns:
        (B, A, H, W) and (B, 4 A, H, W).
    """
    weight, bias = (
        torch.cat([getattr(layer, name) for layer in (classifier, regressor)]) for name in ("weight", "bias")
    )
    outputs: Tensor = _Outputs.apply(x, conv.weight, conv.bias, weight, bias)
    return outputs[:, : classifier.out_channels], outputs[:, classifier.out_channels :]


class _Outputs(torch.autograd.Function):
    """3x3 convolution, ReLU and 1x1 convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, weight_out: Tensor, bias_out: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, weight_out)
        return conv2d(conv2d(x, weight, bias, padding=1).relu_(), weight_out, bias_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, weight, bias, weight_out = ctx.saved_tensors
        batch, channels, height, width = x.shape
        image, row, column = torch.where((gradient != 0).any(1))
        at_outputs = gradient[image, :, row, column].to(weight.dtype)  # (M, outputs)

        # The 3x3 pixels around each position, (M, 9); those outside the map count as zero.
        step = torch.arange(3, device=x.device) - 1
        rows, columns = row[:, None, None] + step[:, None], column[:, None, None] + step
        inside = ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)).flatten(1)
        pixels = (image[:, None, None] * height + rows.clamp(0, height - 1)) * width + columns.clamp(0, width - 1)
        flat = x.permute(0, 2, 3, 1).reshape(-1, channels)
        patches = (flat[pixels.flatten(1)].to(weight.dtype) * inside[..., None]).flatten(1)  # (M, 9 channels)

        kernel = weight.permute(0, 2, 3, 1).flatten(1)  # (hidden, 9 channels)
        hidden = torch.addmm(bias, patches, kernel.T).relu_()
        at_hidden = at_outputs @ weight_out.flatten(1) * (hidden > 0)
        at_patches = (at_hidden @ kernel).unflatten(1, (9, channels)) * inside[..., None]
        at_x = torch.zeros_like(flat, dtype=weight.dtype).index_add_(0, pixels.flatten(), at_patches.flatten(0, 1))
        return (
            at_x.view(batch, height, width, channels).permute(0, 3, 1, 2).to(x.dtype),
            (at_hidden.T @ patches).view(len(weight), 3, 3, channels).permute(0, 3, 1, 2),
            at_hidden.sum(0),
            (at_outputs.T @ hidden).view_as(weight_out),
            at_outputs.sum(0),
        )
