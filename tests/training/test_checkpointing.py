"""Gradient checkpointing changes memory, and nothing that is learnt."""

from __future__ import annotations

import pytest
import torch
from whole_runs import NARROW

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.model.detector import Detector
from doublehead.training.checkpointing import checkpoint_backbone
from doublehead.training.recipes import resolve
from small import SMALL, rows


def a_model(**settings) -> Detector:
    torch.manual_seed(0)
    scratch = {"model.backbone.weights": None, "model.backbone.trainable_stages": 5}
    config = resolve("double-head-tiny", None, None, SMALL | scratch | settings)
    return Detector(config.model, 3, pretrained=False).train()


def kept_and_gradients(model: Detector) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that the backbone's forward pass keeps for its backward pass; and the gradients of the losses."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(256, (3, 64, 96), generator=generator, dtype=torch.uint8) for _ in range(2)]
    truth = {"boxes": torch.tensor([[10.0, 10.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = model.backbone.body(torch.rand(2, 3, 64, 96, generator=generator))  # held, so that no storage is reused
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    for one in maps:  # a checkpointed stage holds its input, the map before
        keep(one)
    torch.manual_seed(2)
    torch.stack(list(model(images, [truth, truth]).values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return sum(size for place, size in kept.items() if place not in weights), gradients


def test_gradients_are_those_of_the_plain_model_and_less_is_kept() -> None:
    plain, checkpointed = a_model(), a_model()
    checkpoint_backbone(checkpointed)
    much, expected = kept_and_gradients(plain)
    little, found = kept_and_gradients(checkpointed)
    assert found.keys() == expected.keys()
    assert any(name.startswith("backbone.body") for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert little < 0.6 * much
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()


def test_batch_norm_that_learns_is_refused() -> None:
    with pytest.raises(DoubleheadError, match=r"train\.checkpoint_backbone"):
        checkpoint_backbone(a_model(**{"model.backbone.norm": "batch"}))


@pytest.mark.usefixtures("no_pictures")
def test_a_run_learns_the_same(dataset, tmp_path) -> None:
    found = []
    for name, on in (("plain", False), ("checkpointed", True)):
        settings = NARROW | {"train.checkpoint_backbone": on}
        doublehead.train(dataset, "double-head-tiny", tmp_path / name, settings=settings)
        found.append(rows(tmp_path / name / "training.csv"))
    plain, checkpointed = found
    assert len(plain) == len(checkpointed) > 1
    for one, other in zip(plain, checkpointed, strict=True):
        assert other == pytest.approx(one, rel=1e-3)
