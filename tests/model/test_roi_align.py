import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvisions

from doublehead.model.roi_align import roi_align


def rois_everywhere() -> Tensor:
    """In two images of 100x140, some over the edges, some far outside, some without area."""
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=g) * 220 - 60
    sides = torch.rand(300, 2, generator=g) * 120 * (torch.rand(300, 1, generator=g) > 0.1)
    image = (torch.arange(300) % 2)[:, None]
    return torch.cat([image, corner, corner + sides], 1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling", [0, 1, 2, 3])
def test_agrees_with_torchvision_forward_and_backward(sampling: int, aligned: bool, channels_last: bool) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 5, 25, 35, dtype=torch.float64)
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    rois = rois_everywhere().double()
    results, gradients = [], []
    for way in (roi_align, torchvisions):
        mine = features.clone().requires_grad_()
        result = way(mine, rois, 7, 0.25, sampling, aligned)
        (result * torch.arange(result.numel(), dtype=torch.float64).view(result.shape).sin()).sum().backward()
        results.append(result.detach())
        gradients.append(mine.grad)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampling", [0, 2])
def test_no_rois(sampling: int) -> None:
    features = torch.randn(1, 3, 8, 8, requires_grad=True)
    result = roi_align(features, torch.zeros(0, 5), 7, 0.25, sampling, False)
    assert result.shape == (0, 3, 7, 7)
    result.sum().backward()
