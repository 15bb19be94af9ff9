"""Cascade R-CNN of MMDetection and detectron2: key lists of the published files, and detections recomputed."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2_keys import published_cascade_keys
from golden_weights import weights_of
from mmdetection_keys import mmdetections
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms, roi_align

from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig
from doublehead.model.checkpoint import load_model
from doublehead.model.detector import Detector
from doublehead.model.interop import detectron2, mmdetection
from doublehead.model.interop.convert import convert, convert_back

CLASSES = 3
WIDTH = 24
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
WEIGHTS = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
SIZE = (320, 480)


@pytest.mark.parametrize("depth", [50, 101])
def test_every_key_of_mmdetections_cascades_is_used(depth: int) -> None:
    weights = mmdetections("cascade_rcnn", depth)
    config, classes, ours = mmdetection.CASCADE_RCNN.load(weights, {})
    assert (config.backbone.name, classes) == (f"resnet{depth}", 80)
    assert len(ours) == len([key for key in weights if not key.endswith("num_batches_tracked")])
    assert [stage.deviations for stage in config.stages] == list(STDS)
    assert config.cascade is not None
    assert (config.cascade.scores, config.roi.class_agnostic) == ("logits", True)
    assert mmdetection.CASCADE_RCNN.save(config, ours).keys() == weights.keys()


@pytest.mark.parametrize("depth", [50, 101])
def test_every_key_of_detectron2s_cascades_is_used(depth: int) -> None:
    weights = published_cascade_keys(depth)
    config, classes, ours = detectron2.CASCADE_RCNN.load(weights, {})
    assert (config.backbone.name, classes) == (f"resnet{depth}", 80)
    boxes_alone = {key for key in weights if ".mask_head." not in key}
    assert len(ours) == len(boxes_alone)
    assert config.cascade is not None
    assert (config.cascade.scores, config.roi.class_agnostic) == ("probabilities", True)
    assert detectron2.CASCADE_RCNN.save(config, ours).keys() == boxes_alone


def test_a_cascade_is_recognised_by_one_format_alone() -> None:
    formats = [*mmdetection.FORMATS, *detectron2.FORMATS]
    assert [f.name for f in formats if f.recognises(mmdetections("cascade_rcnn", 50))] == [
        mmdetection.CASCADE_RCNN.name
    ]
    assert [f.name for f in formats if f.recognises(published_cascade_keys(50))] == [detectron2.CASCADE_RCNN.name]
    missing = {
        key: value
        for key, value in mmdetections("cascade_rcnn", 50).items()
        if key != "roi_head.bbox_head.2.fc_reg.bias"
    }
    with pytest.raises(DoubleheadError, match=r"missing: roi_head\.bbox_head\.2\.fc_reg\.bias"):
        mmdetection.CASCADE_RCNN.load(missing, {})


@pytest.fixture(scope="module")
def first_stage() -> tuple[dict[str, Tensor], int]:
    """The golden model of MMDetection up to its proposals, and the channels of its pyramid."""
    weights = {key: value for key, value in weights_of("mmdetection").items() if not key.startswith("roi_head.")}
    return weights, len(weights["neck.fpn_convs.0.conv.weight"])


def random_heads(channels: int, names: tuple[str, str, str, str]) -> dict[str, Tensor]:
    """Weights of three stages under a program's names of two layers, a classifier and a regressor."""
    random = torch.Generator().manual_seed(1)
    result = {}
    for stage in range(3):
        shapes = ((WIDTH, channels * 49), (WIDTH, WIDTH), (CLASSES + 1, WIDTH), (4, WIDTH))
        for name, shape, std in zip(names, shapes, (0.1, 0.2, 0.3, 0.3), strict=True):
            result[f"{name.format(stage)}.weight"] = torch.randn(shape, generator=random) * std
            result[f"{name.format(stage)}.bias"] = torch.randn(shape[:1], generator=random) * 0.1
    return result


@pytest.fixture(scope="module")
def of_mmdetection(first_stage: tuple[dict[str, Tensor], int]) -> dict[str, Tensor]:
    weights, channels = first_stage
    head = "roi_head.bbox_head.{}."
    names = (f"{head}shared_fcs.0", f"{head}shared_fcs.1", f"{head}fc_cls", f"{head}fc_reg")
    return weights | random_heads(channels, names)


@pytest.fixture(scope="module")
def of_detectron2(first_stage: tuple[dict[str, Tensor], int]) -> dict[str, Tensor]:
    weights, channels = first_stage
    stage = mmdetection.FASTER_RCNN.table
    ours = {new: old for old, new in detectron2.CASCADE_RCNN.table}
    result = {}
    for key, value in weights.items():
        if key.endswith("num_batches_tracked"):
            continue
        old, new = next(row for row in stage if key.startswith(row[0]))
        name = new + key.removeprefix(old)
        prefix = next(p for p in ours if name.startswith(p))
        result[ours[prefix] + name.removeprefix(prefix)] = value
    stem = "backbone.bottom_up.stem.conv1.weight"
    result[stem] = result[stem].flip(1)
    names = tuple(f"roi_heads.{name}" for name in ("box_head.{}.fc1", "box_head.{}.fc2", "box_predictor.{}.cls_score",
                                                    "box_predictor.{}.bbox_pred"))  # fmt: skip
    return result | random_heads(channels, names)  # type: ignore[arg-type]


def head(weights: dict[str, Tensor], names: tuple[str, str, str, str], stage: int, rois: Tensor) -> Any:
    """Logits with the background last, and deltas, by functional layers alone."""
    x = rois.flatten(1)
    layers = [(weights[f"{n.format(stage)}.weight"], weights[f"{n.format(stage)}.bias"]) for n in names]
    for layer in layers[:2]:
        x = functional.linear(x, *layer).relu()
    return functional.linear(x, *layers[2]), functional.linear(x, *layers[3])


def pooled(levels: list[Tensor], boxes: Tensor) -> Tensor:
    """Of one image, level by level: aligned, with as many samples as there are pixels (both programs)."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = (area.sqrt() / 56 + 1e-6).log2().floor().clamp(0, 3)
    result = boxes.new_zeros(len(boxes), levels[0].shape[1], 7, 7)
    for i, features in enumerate(levels):
        result[level == i] = roi_align(features, [boxes[level == i]], 7, 1 / 2 ** (i + 2), 0, aligned=True)
    return result


def moved(boxes: Tensor, deltas: Tensor, stds: Tensor) -> Tensor:
    """Boxes by their deltas, inside the image (MMDetection's DeltaXYWHBBoxCoder, detectron2's Box2BoxTransform)."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    deltas = deltas * stds
    limit = abs(math.log(16 / 1000))
    centre = centre + size * deltas[:, :2]
    half = size * deltas[:, 2:].clamp(max=limit).exp() / 2
    found = torch.cat([centre - half, centre + half], 1)
    return torch.stack([found[:, k].clamp(0, SIZE[1 - k % 2]) for k in range(4)], 1)


def recomputed(
    weights: dict[str, Tensor],
    names: tuple[str, str, str, str],
    levels: list[Tensor],
    boxes: Tensor,
    stds: list[Tensor],
    logits_averaged: bool,
) -> dict[str, Tensor]:
    """Detections by torchvision's operators."""
    found = []
    for stage in range(3):
        logits, deltas = head(weights, names, stage, pooled(levels, boxes))
        found.append(logits)
        boxes = moved(boxes, deltas, stds[stage])
    mean = (sum(found) / 3).softmax(1) if logits_averaged else sum(x.softmax(1) for x in found) / 3
    owner, label = torch.where(mean[:, :-1] > 0.05)
    scores, boxes = mean[owner, label], boxes[owner]
    keep = batched_nms(boxes.double(), scores.double(), label, 0.5)[:100]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": label[keep] + 1}


def compared(model: Detector, weights: dict[str, Tensor], names: Any, stds: Any, logits_averaged: bool) -> None:
    """On random features and proposals: those of the first stage are compared in tests/golden."""
    random = torch.Generator().manual_seed(4)
    channels = model.config.fpn.channels
    levels = [torch.randn(1, channels, SIZE[0] // s, SIZE[1] // s, generator=random) for s in (4, 8, 16, 32)]
    corner = torch.rand(300, 2, generator=random) * torch.tensor([SIZE[1] - 20, SIZE[0] - 20])
    sides = 8 * 40 ** torch.rand(300, 2, generator=random)
    proposals = model.edges.clip(torch.cat([corner, corner + sides], 1), SIZE)
    with torch.no_grad():
        found = model.roi_heads.detections(levels, [proposals], [SIZE], model.options)[0]
        own = [torch.tensor(s, dtype=torch.float32) for s in stds]
        expected = recomputed(weights, names, levels, proposals, own, logits_averaged)
    assert len(expected["boxes"]) == 100
    assert len(expected["labels"].unique()) == CLASSES
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-2, rtol=0)
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-4, rtol=0)


def test_detections_are_those_of_mmdetections_conventions(of_mmdetection: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": of_mmdetection}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    model, _ = load_model(tmp_path / "b.safetensors")
    base = "roi_head.bbox_head.{}."
    names = (f"{base}shared_fcs.0", f"{base}shared_fcs.1", f"{base}fc_cls", f"{base}fc_reg")
    compared(model, of_mmdetection, names, STDS, logits_averaged=True)
    convert_back(tmp_path / "b.safetensors", tmp_path / "c.pth", "mmdetection")
    back = torch.load(tmp_path / "c.pth")["state_dict"]
    assert back.keys() == of_mmdetection.keys()
    assert all(torch.equal(back[key], value) for key, value in of_mmdetection.items() if "tracked" not in key)
    with pytest.raises(DoubleheadError, match="cannot be written for detectron2"):
        convert_back(tmp_path / "b.safetensors", tmp_path / "d.pth", "detectron2")


def test_detections_are_those_of_detectron2s_conventions(of_detectron2: dict[str, Tensor], tmp_path: Path) -> None:
    content = {"model": {key: value.numpy() for key, value in of_detectron2.items()}}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=2))
    settings: dict[str, Any] = {"model.backbone.resnet.stride_in": "3x3"}
    convert(tmp_path / "a.pkl", tmp_path / "b.safetensors", settings=settings)
    model, _ = load_model(tmp_path / "b.safetensors")
    names = tuple(f"roi_heads.{n}" for n in ("box_head.{}.fc1", "box_head.{}.fc2", "box_predictor.{}.cls_score",
                                              "box_predictor.{}.bbox_pred"))  # fmt: skip
    inverse = [tuple(1 / w for w in weights) for weights in WEIGHTS]
    compared(model, of_detectron2, names, inverse, logits_averaged=False)
    convert_back(tmp_path / "b.safetensors", tmp_path / "c.pth", "detectron2")
    back = torch.load(tmp_path / "c.pth")["model"]
    assert all(torch.equal(back[key], value) for key, value in of_detectron2.items() | back.items())


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"cascade.scores": "probabilities"}, "cascade.scores"), ({"cascade.ious": [0.5, 0.6]}, "deviations")],
)
def test_what_computes_otherwise_is_not_written(changes: dict[str, Any], word: str) -> None:
    weights = mmdetections("cascade_rcnn", 50)
    config, _, ours = mmdetection.CASCADE_RCNN.load(weights, {})
    values = config.model_dump(mode="json")
    values["cascade"] |= {key.split(".")[1]: value for key, value in changes.items()}
    if "ious" in values["cascade"] and len(values["cascade"]["ious"]) == 2:
        values["cascade"] |= {"deviations": STDS[:2], "loss_weights": [1, 0.5]}
    with pytest.raises(DoubleheadError, match=word):
        mmdetection.CASCADE_RCNN.save(ModelConfig.model_validate(values), ours)


def test_a_plain_detector_whose_boxes_are_coded_otherwise_is_not_written() -> None:
    faster = mmdetections("faster_rcnn", 50)
    config, _, ours = mmdetection.FASTER_RCNN.load(faster, {})
    values = config.model_dump(mode="json") | {"cascade": {"ious": [0.5], "deviations": [STDS[1]]}}
    with pytest.raises(DoubleheadError, match="cascade"):
        mmdetection.FASTER_RCNN.save(ModelConfig.model_validate(values), ours)
