"""The detector on tensors that hold no numbers: whatever is made on another device ends here, without a card.

Forward passes and losses run on fake CUDA tensors. Autograd asks the driver for the current stream of a CUDA tensor,
fake or not, so backward passes run on the meta device, where mixing devices is an error too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_models import small_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from doublehead.model import box_head, pooling
from doublehead.model.detector import unit_range
from doublehead.model.matching import BoxMatcher
from doublehead.model.variants import VARIANTS

CUDA = torch.device("cuda")
SIZE = (96, 128)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    """Inside, tensors have a device and a shape, and no values."""
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False) as mode:
        yield mode


def on_cuda(variant: str, **changes: Any) -> Any:
    with CUDA:
        return small_model(variant, **changes)


def boxes(number: int = 24) -> Tensor:
    corner = torch.rand(number, 2, device=CUDA) * 60
    return torch.cat([corner, corner + 20], 1)


@pytest.mark.parametrize("variant", [*VARIANTS])
def test_features_of_images_and_the_proposal_networks_head(fake: FakeTensorMode, variant: str) -> None:
    model = on_cuda(variant)
    images = [torch.empty(3, *SIZE, dtype=torch.uint8) for _ in range(2)]  # as a loader gives them
    batch, features = model._features(images)
    assert batch.tensors.device.type == "cuda"
    logits, deltas = model.rpn.head(list(features.values()))
    anchors = model.rpn.anchor_generator(batch, list(features.values()))
    assert {t.device.type for t in (*features.values(), *logits, *deltas, *anchors)} == {"cuda"}


@pytest.mark.parametrize("variant", [*VARIANTS])
@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_branches_forward_and_backward(fake: FakeTensorMode, variant: str, precision: torch.dtype | None) -> None:
    model = on_cuda(variant)
    with torch.autocast("cuda", precision, enabled=precision is not None):
        results = [branch(torch.empty(24, 16, 7, 7, device=CUDA)) for branch in model.roi_heads]
    found = [value for pair in results for value in pair if value is not None]
    assert {(value.device.type, value.dtype) for value in found} == {("cuda", torch.float32)}


@pytest.mark.parametrize("agnostic", [True, False])
def test_box_loss(fake: FakeTensorMode, agnostic: bool) -> None:
    labels = torch.arange(24, device=CUDA) % 5
    deltas = torch.empty(24, 4 if agnostic else 20, device=CUDA)
    loss = box_head.box_loss(deltas, labels, torch.empty(24, 4, device=CUDA), 24)
    assert (loss.device.type, loss.shape) == ("cuda", ())


@pytest.mark.parametrize("variant", [*VARIANTS])
def test_backward_away_from_the_cpu(variant: str) -> None:
    with torch.device("meta"):
        model = small_model(variant)
    images = [torch.empty(3, *SIZE, dtype=torch.uint8) for _ in range(2)]
    _, features = model._features(images)
    logits, deltas = model.rpn.head(list(features.values()))
    pooled = torch.empty(24, 16, 7, 7, device="meta")
    found = [value for branch in model.roi_heads for value in branch(pooled) if value is not None]
    torch.stack([value.sum() for value in (*logits, *deltas, *found)]).sum().backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert learning
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in learning)


def test_matching_and_coding(fake: FakeTensorMode) -> None:
    head = on_cuda("double-head").roi_heads.last
    match = BoxMatcher(0.5, 0.5, best_of_each=True)(boxes(3), boxes())
    assert (match.device.type, match.shape) == ("cuda", (24,))
    deltas = head.coder.encode_single(boxes(), boxes())
    assert head.coder.decode_single(deltas, boxes()).device.type == "cuda"


def test_levels_and_scales_of_the_pooler(fake: FakeTensorMode) -> None:
    assert pooling.pyramid_level(boxes()).device.type == "cuda"
    assert pooling.enlarge(boxes(), 1.3).device.type == "cuda"


def test_images_are_normalised_where_the_model_is(fake: FakeTensorMode) -> None:
    model = on_cuda("double-head")
    image = unit_range(torch.empty(3, 8, 8, dtype=torch.uint8).to(model.mean.device), model.mean.dtype)
    assert ((image - model.mean) / model.std).device.type == "cuda"


@pytest.mark.parametrize("fault", [lambda x: x + torch.ones(x.shape[-1]), lambda x: x[torch.zeros(2, 3)]])
def test_a_tensor_on_another_device_would_be_found(fake: FakeTensorMode, fault: Callable[[Tensor], Tensor]) -> None:
    """Without this, the tests above could pass whatever the code does."""
    with pytest.raises((RuntimeError, IndexError)):
        fault(boxes())
