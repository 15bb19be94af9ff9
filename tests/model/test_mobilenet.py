"""torchvision's MobileNetV3 as a backbone: two maps of stride 32, several anchor sizes at each position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn
from torchvision.ops import FrozenBatchNorm2d

from doublehead.common.errors import DoubleheadError
from doublehead.config import BackboneConfig, ModelConfig
from doublehead.model.anchors import ANCHORS
from doublehead.model.detector import Detector
from doublehead.model.mobilenet import MobileNetBody
from doublehead.model.optimize import for_inference
from doublehead.model.pooling import pyramid_level
from doublehead.model.presets import preset
from doublehead.training.recipes import resolve
from small import SMALL, flags

SIZES = [[8, 16], [16, 32], [32, 64]]


def body(norm: str = "frozen", weights: str | None = None, **values: Any) -> MobileNetBody:
    config = {"name": "mobilenet_v3_large", "norm": norm, "weights": weights, **values}
    return MobileNetBody(BackboneConfig.model_validate(config)).eval()


def config(**changes: Any) -> ModelConfig:
    values = preset("double-head-mobilenet").model_dump() | {"input": {"short_side": 96, "long_side": 128}}
    heads = {"fc_head": {"width": 32}, "conv_head": {"width": 32, "bottleneck_width": 16, "non_local_width": 16}}
    return ModelConfig.model_validate(values | heads | {"fpn": {"channels": 16}} | changes)


def test_its_stages_hold_every_parameter_once() -> None:
    own = body()
    stages = [{id(p) for layer in stage for p in layer.parameters()} for stage in own.stages()]
    assert len(stages) == 5
    assert sum(map(len, stages)) == len(set.union(*stages)) == len(list(own.parameters()))
    strides = []
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        for stage in own.stages():
            for layer in stage:
                x = layer(x)
            strides.append(64 // x.shape[-1])
    assert strides == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_the_weights_of_torchvisions_classifier_are_taken(norm: str, tmp_path: Path) -> None:
    theirs = mobilenet_v3_large().eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    own = body(norm, mobilenet={"norm_eps": 1e-3})
    own.load(str(tmp_path / "a.pth"))
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(own(image)[1], theirs.features(image))
    assert [m.shape[1:] for m in own(image)] == [(160, 2, 3), (960, 2, 3)]
    torch.save({k: v for k, v in theirs.state_dict().items() if "features.3." not in k}, tmp_path / "b.pth")
    with pytest.raises(DoubleheadError, match=r"b\.pth: these are not weights of a mobilenet_v3_large"):
        body().load(str(tmp_path / "b.pth"))


def test_presets_and_other_models_take_its_pyramid_of_three_levels() -> None:
    sizes = ((32, 64, 128, 256, 512),) * 3
    assert preset("double-head-mobilenet-320").rpn.anchor_sizes == sizes
    assert resolve("double-head-lite", backbone="mobilenet_v3_large").model.rpn.anchor_sizes == sizes
    assert resolve("double-head-mobilenet", backbone="resnet18").model.rpn.anchor_sizes == (32, 64, 128, 256, 512)
    with pytest.raises(DoubleheadError, match=r"rpn\.anchor_sizes: .* mobilenet_v3_large has 3 levels.* for 5"):
        resolve("double-head-mobilenet", settings={"model.rpn.anchor_sizes": [32, 64, 128, 256, 512]})
    with pytest.raises(DoubleheadError, match="give each level the same number of sizes"):
        resolve("double-head-mobilenet", settings={"model.rpn.anchor_sizes": [[32, 64], [128], [256]]})
    with pytest.raises(DoubleheadError, match=r"model\.backbone\.norm=group"):
        body("group")


@pytest.mark.parametrize("kind", ANCHORS)
def test_several_sizes_at_a_position_stand_ratio_by_ratio(kind: str) -> None:
    """The order in which torchvision and MMDetection number the outputs of their RPN."""
    both = ANCHORS[kind]([[32, 64]], (0.5, 2.0), (16,)).cell_anchors[0]
    one, other = (ANCHORS[kind]([size], (0.5, 2.0), (16,)).cell_anchors[0] for size in (32, 64))
    assert torch.equal(both, torch.stack([one[0], other[0], one[1], other[1]]))


def test_of_two_levels_with_one_stride_rois_come_from_the_first() -> None:
    boxes = torch.tensor([[0.0, 0.0, side, side] for side in (4.0, 224.0, 4000.0)])
    assert pyramid_level(boxes, (32, 32)).tolist() == [0, 0, 0]
    assert pyramid_level(boxes).tolist() == [0, 2, 3]


def test_proposals_below_the_least_score_are_dropped() -> None:
    images = [torch.rand(3, 96, 128)]
    counts = []
    for least in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        model = Detector(config(rpn={"score_threshold": least}), 3).eval()
        model.rpn.head.cls_logits.bias.data[::2] = -5
        counts.append(len(model.first_stage(images).proposals[0]))
        assert model.detect(images)[0]["boxes"].shape[1] == 4
    assert counts[0] > counts[1] >= counts[2] == 0


def test_it_learns_and_its_copy_for_inference_finds_the_same() -> None:
    torch.manual_seed(0)
    model = Detector(config(rpn={"anchor_sizes": SIZES}, roi={"sampled": 16}), 3)
    target = {"boxes": torch.tensor([[10.0, 10.0, 70.0, 60.0]]), "labels": torch.tensor([2])}
    losses = model.losses([torch.rand(3, 96, 128)], [target])
    torch.stack(list(losses.values())).sum().backward()
    assert model.backbone.body.stages()[4][0].block[0][0].weight.grad.abs().sum() > 0  # type: ignore[index, union-attr]
    copy, image = for_inference(model, torch.device("cpu")), torch.rand(1, 3, 96, 128)
    model.eval()
    with torch.no_grad():
        for ours, theirs in zip(model.backbone(image).values(), copy.backbone(image).values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not [m for m in copy.backbone.body.modules() if isinstance(m, FrozenBatchNorm2d)]


def test_the_preset_has_as_many_parameters_as_torchvisions_detector() -> None:
    with torch.device("meta"):
        theirs = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
        ours = Detector(preset("single-fc-mobilenet").model_copy(), 90)
    heads = [sum(p.numel() for p in m.roi_heads.parameters()) for m in (ours, theirs)]
    fpn = [sum(p.numel() for p in m.backbone.fpn.parameters()) for m in (ours, theirs)]
    assert heads[0] == heads[1]
    assert fpn[0] == fpn[1]


def test_it_trains_by_the_command(dataset: Path, tmp_path: Path, command: Any) -> None:
    settings = {k: v for k, v in SMALL.items() if k not in ("model.rpn.anchor_sizes", "model.backbone.norm")}
    settings |= {"model.backbone.weights": None, "model.backbone.norm": "batch", "model.backbone.trainable_stages": 5}
    settings |= {"train.steps": 2, "data.val_split": None}
    words = ("train", dataset, "--model", "double-head-mobilenet", "-o", tmp_path / "run", *flags(settings))
    assert command(*words).code == 0
    assert command("check", dataset, "--model", "double-head-mobilenet").code == 0
