import pytest
import torch
from small_models import small_model, target
from torch import nn


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_is_the_number_of_3x3_convolutions(depth: int) -> None:
    model = small_model(rpn={"depth": depth}).train()
    kernels = [m.kernel_size for m in model.rpn.head.modules() if isinstance(m, nn.Conv2d)]
    assert sorted(kernels) == [(1, 1)] * 2 + [(3, 3)] * depth
    losses = model.losses([torch.rand(3, 64, 96)], [target([[8, 8, 40, 40]], [1])])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.rpn.parameters())
