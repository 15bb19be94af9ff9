"""Forward, losses and backward of every variant on CUDA, on machines without a card: no tensor is on the wrong device.

Fakes have shapes and devices but no values. `torch.cuda.is_available` plays no part.
"""

from __future__ import annotations

import pytest
import torch
from fake_cuda import backward, fake_cuda
from small_models import small_model

from benchmarks.rival import Rival
from doublehead.model import pooling
from doublehead.model.detector import Detector
from doublehead.model.variants import VARIANTS

SIZES = ((96, 128), (90, 100))


def on_cuda(variant: str, **changes) -> Detector:
    with torch.device("cuda"):
        return small_model(variant, **changes)


def images(device: str = "cuda") -> list[torch.Tensor]:
    return [torch.empty(3, *size, dtype=torch.uint8, device=device) for size in SIZES]


def targets() -> list[dict[str, torch.Tensor]]:
    boxes, labels = torch.empty(2, 4, device="cuda"), torch.empty(2, dtype=torch.int64, device="cuda")
    return [{"boxes": boxes, "labels": labels} for _ in SIZES]


def trained(model: Detector) -> None:
    """One step's losses and gradients, all of them on CUDA."""
    losses = model.train().losses(images(), targets())
    assert {loss.device.type for loss in losses.values()} == {"cuda"}
    backward(torch.stack(list(losses.values())).sum())
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert (weight.grad.device, weight.grad.shape) == (weight.device, weight.shape), name


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_and_detects(variant):
    with fake_cuda():
        model = on_cuda(variant)
        trained(model)
        for result in model.eval().detect(images()):
            assert {value.device.type for value in result.values()} == {"cuda"}


@pytest.mark.parametrize(
    "changes",
    [
        {"inclusive_pixels": True, "rpn": {"anchors": "authors"}},
        {"rpn": {"anchors": "mmdetection"}, "roi": {"aligned": True, "sampling_ratio": 0}},
        {"roi": {"class_agnostic": True, "training_proposals": "all", "inference_proposals": "all"}},
        {"roi": {"score_floor": 0.1, "fusion": "average"}},
    ],
    ids=str,
)
def test_every_convention(changes):
    with fake_cuda():
        model = on_cuda("double-head-ext", **changes)
        trained(model)
        model.eval().detect(images())


def test_images_may_come_from_the_cpu():
    with fake_cuda():
        model = on_cuda("double-head").eval()
        assert {value.device.type for result in model.detect(images("cpu")) for value in result.values()} == {"cuda"}


def test_torchvision_s_too():
    config = small_model("double-head").config
    with fake_cuda():
        with torch.device("cuda"):
            rival = Rival(config, 3).eval()
        assert {value.device.type for result in rival.detect(images("cpu")) for value in result.values()} == {"cuda"}


def test_a_tensor_on_the_wrong_device_is_found(monkeypatch):
    """The test of these tests."""
    level = pooling.pyramid_level
    monkeypatch.setattr(
        pooling, "pyramid_level", lambda boxes, *how: level(boxes, *how) + torch.zeros(len(boxes)).long()
    )
    with fake_cuda():
        model = on_cuda("double-head")
        with pytest.raises(RuntimeError, match="to be on the same device"):
            trained(model)
        with pytest.raises(RuntimeError, match="to be on the same device"):
            model.eval().detect(images())
