"""Nothing depends on the default type that a program has set for torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import small_model, target

from doublehead.common.categories import Categories
from doublehead.inference.predictor import load
from doublehead.model.checkpoint import load_model, save_checkpoint
from doublehead.model.cost import cost
from doublehead.model.detector import Detector
from doublehead.model.optimize import for_inference

OTHERS = (torch.float64, torch.float16, torch.bfloat16)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "double-head": ("double-head", {}),
    "fused": ("double-head-ext", {"roi": {"score_floor": 0.1}}),
    "class-agnostic": ("single-fc", {"roi": {"class_agnostic": True, "sampling_ratio": 0}}),
    "authors": ("double-head", {"inclusive_pixels": True, "rpn": {"anchors": "authors"}}),
    "mmdetection": ("double-head-reverse", {"rpn": {"anchors": "mmdetection"}, "roi": {"aligned": True}}),
}


@pytest.fixture(params=OTHERS, ids=str)
def other(request):
    """Sets another default type when called."""
    yield lambda: torch.set_default_dtype(request.param)
    torch.set_default_dtype(torch.float32)


def found_by(model: Detector) -> list[dict[str, Any]]:
    images = [torch.arange(3 * 90 * 120).view(3, 90, 120) * 7 % 251, torch.arange(3 * 80 * 64).view(3, 80, 64) % 256]
    images = [image.to(torch.uint8) for image in images]
    targets = [target([[10, 10, 70, 60]], [1]), target([[5, 8, 40, 70], [20, 20, 60, 60]], [2, 3])]
    torch.manual_seed(1)
    losses = model.train().losses(images, targets)
    return [losses, *for_inference(model, torch.device("cpu")).detect(images)]


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_detections_are_the_same(other, name):
    variant, changes = MODELS[name]
    expected = found_by(small_model(variant, **changes))
    other()
    found = found_by(small_model(variant, **changes))
    assert all(len(image["boxes"]) for image in expected[1:])
    for one, same in zip(found, expected, strict=True):
        for key, value in same.items():
            assert one[key].dtype == value.dtype
            assert torch.equal(one[key], value), key


def test_a_program_s_own_default_stays(other):
    other()
    before = torch.get_default_dtype()
    small_model()
    assert torch.get_default_dtype() == before


def test_a_checkpoint_is_loaded_and_predicts_the_same(other, tmp_path):
    path, image = tmp_path / "x.safetensors", torch.arange(3 * 90 * 120).view(3, 90, 120) % 256 / 255
    model = small_model()
    save_checkpoint(path, model.config, Categories(("a", "b", "c", "d"), (1, 2, 3, 4)), model.state_dict(), {})
    expected = load(path, "cpu").predict(image.numpy())
    assert len(expected)
    other()
    assert {weight.dtype for weight in load_model(path)[0].state_dict().values()} <= {torch.float32, torch.int64}
    assert load(path, "cpu").predict(image.numpy()) == expected
    assert cost(model.config) == cost(load_model(path)[0].config)
