"""Batch renormalisation, as Ioffe's paper states it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from doublehead.model.folding import fold_norms
from doublehead.model.norms import NORMS, BatchRenorm

CHANNELS = 6
FIRST, LAST = BatchRenorm.OPENING


def batch(seed: int) -> Tensor:
    """Few objects: values of one sample are alike."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(4, CHANNELS, 1, 1, generator=generator, dtype=torch.float64)
    return centre + torch.randn(4, CHANNELS, 3, 3, generator=generator, dtype=torch.float64)


def learnt(updates: int) -> BatchRenorm:
    norm = NORMS["renorm"](CHANNELS).double()
    assert isinstance(norm, BatchRenorm)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    for seed in range(updates):
        norm(batch(seed))
    return norm


def test_it_begins_as_batch_norm() -> None:
    norm, plain = NORMS["renorm"](CHANNELS).double(), nn.BatchNorm2d(CHANNELS).double()
    for seed in range(FIRST):
        torch.testing.assert_close(norm(batch(seed)), plain(batch(seed)))
    torch.testing.assert_close(norm.state_dict(), plain.state_dict())


def test_training_ends_up_normalising_as_inference_does() -> None:
    norm, x = learnt(LAST), batch(LAST)
    inferred = norm.eval()(x)
    torch.testing.assert_close(norm.train()(x), inferred)


def test_inference_is_that_of_batch_norm() -> None:
    norm, plain = learnt(LAST), nn.BatchNorm2d(CHANNELS).double()
    plain.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm.eval()(batch(0)), plain.eval()(batch(0)))


@pytest.mark.parametrize("updates", [FIRST, (FIRST + LAST) // 2, LAST])
def test_the_correction_is_limited(updates: int) -> None:
    """A batch far away has mean 0 and variance 1 before scale and shift, which have limits."""
    norm = learnt(updates)
    y = norm((100 * batch(1)) + 1000).detach()
    normal = (y - norm.bias.detach().view(-1, 1, 1)) / norm.weight.detach().view(-1, 1, 1)
    share = min((updates + 1 - FIRST) / (LAST - FIRST), 1)
    variance, mean = torch.var_mean(normal, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.full_like(mean, share * BatchRenorm.LIMITS[1]))
    torch.testing.assert_close(variance.sqrt(), torch.full_like(variance, 1 + share * (BatchRenorm.LIMITS[0] - 1)))


def test_the_correction_is_constant_for_gradients() -> None:
    """So that a constant added to a channel changes nothing, as with batch norm."""
    norm, x = learnt(LAST), batch(LAST).requires_grad_()
    (norm(x) * batch(LAST + 1)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum((0, 2, 3)), torch.zeros(CHANNELS, dtype=torch.float64), atol=1e-9, rtol=0)
    assert x.grad.abs().max() > 1e-3


def test_it_is_folded_for_inference() -> None:
    x = batch(0)
    layers = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3), learnt(LAST)).double().eval()
    before = layers(x)
    fold_norms(layers, x)
    assert "1.running_var" not in layers.state_dict()
    torch.testing.assert_close(layers(x), before)


def test_a_batch_without_rois_changes_no_statistics() -> None:
    norm = learnt(3)
    before = norm.running_mean.clone(), norm.running_var.clone()
    assert norm(batch(0)[:0]).shape == (0, CHANNELS, 3, 3)
    torch.testing.assert_close((norm.running_mean, norm.running_var), before)
