import pytest
import torch
from small_models import small_model, target
from torch import nn
from torchvision.models.detection.rpn import RPNHead

from doublehead.model.rpn_gradient import rpn_outputs


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_is_the_number_of_3x3_convolutions(depth: int) -> None:
    model = small_model(rpn={"depth": depth}).train()
    kernels = [m.kernel_size for m in model.rpn.head.modules() if isinstance(m, nn.Conv2d)]
    assert sorted(kernels) == [(1, 1)] * 2 + [(3, 3)] * depth
    losses = model.losses([torch.rand(3, 64, 96)], [target([[8, 8, 40, 40]], [1])])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.rpn.parameters())


@pytest.mark.parametrize("depth", [1, 2])
def test_losses_and_gradients_are_those_of_torchvisions_head(depth: int) -> None:
    """Objects in the corners, so that sampled positions have neighbours outside of the map."""
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    truth = [target([[0, 0, 20, 30], [90, 60, 128, 96]], [1, 2])]
    found = []
    for own in (True, False):
        model = small_model("single-fc", rpn={"depth": depth, "sampled": 64}).train()
        if not own:
            model.rpn.head.forward = lambda x, head=model.rpn.head: RPNHead.forward(head, x)
        torch.manual_seed(0)
        losses = model.losses([image], truth)
        sum(losses.values()).backward()
        found.append((losses, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_the_gradient_of_any_loss_is_autograds(share: float) -> None:
    """Of a loss on no outputs, on some and on all."""
    torch.manual_seed(0)
    layers = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 12, 1)
    for layer in layers:
        layer.double()
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 15, 7, 9, dtype=torch.float64) * (torch.rand(2, 1, 7, 9) < share)
    hidden = layers[0](x).relu()
    inputs = [x, *(p for layer in layers for p in layer.parameters())]
    gradients = []
    for outputs in (rpn_outputs(x, *layers), (layers[1](hidden), layers[2](hidden))):
        gradients.append(torch.autograd.grad((torch.cat(outputs, 1) * weights).sum(), inputs))
    torch.testing.assert_close(*gradients)
