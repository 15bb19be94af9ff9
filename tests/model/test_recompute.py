"""Gradient checkpointing changes memory and time, and nothing that is computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import small_model, target

from doublehead.config import BackboneConfig, FPNConfig
from doublehead.model.backbone import Backbone

BODIES: dict[str, dict[str, Any]] = {
    "basic blocks": {"name": "resnet18", "norm": "batch", "trainable_stages": 5},
    "bottlenecks, two stages frozen": {"name": "resnet50", "norm": "frozen", "trainable_stages": 3},
    "mobilenet": {"name": "mobilenet_v3_large", "norm": "batch", "trainable_stages": 5},
    "timm": {"name": "timm", "norm": "batch", "trainable_stages": 5, "timm": {"model": "tf_efficientnet_lite0"}},
    "drop path": {
        "name": "timm",
        "norm": "batch",
        "trainable_stages": 4,
        "timm": {"model": "convnext_atto", "drop_path": 0.5},
    },
}


def step(backbone: Backbone, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a step, and how many bytes were kept for it outside of checkpointed blocks."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sum(maps.square().mean() for maps in backbone(images).values())
        loss.backward()
    return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}, kept


@pytest.mark.parametrize("body", BODIES)
def test_gradients_and_running_statistics_are_the_plain_ones(body: str) -> None:
    torch.manual_seed(0)
    plain = Backbone(BackboneConfig(weights=None, **BODIES[body]), FPNConfig(channels=16), pretrained=False).train()
    again = copy.deepcopy(plain)
    again.recompute = True
    images = torch.rand(2, 3, 64, 96)
    expected, all_kept = step(plain, images)
    found, kept = step(again, images)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(again.get_buffer(name), buffer, rtol=0, atol=0, msg=name)
    assert kept < all_kept / 2


def test_a_copy_of_the_model_computes_with_its_own_weights() -> None:
    model = small_model(backbone={"norm": "batch"}).train()
    model.backbone.recompute = True
    images, targets = [torch.rand(3, 64, 64)], [target([[5, 5, 40, 40]], [1])]
    sum(model.losses(images, targets).values()).backward()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.zero_()
    maps = other.backbone(torch.rand(1, 3, 64, 64))
    assert all(features.abs().sum() > 0 for features in maps.values())
