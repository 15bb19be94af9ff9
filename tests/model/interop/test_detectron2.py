"""detectron2's weights: key lists of the published R-50 and R-101, conventions, and pickles that would run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2_keys import published_keys
from golden_weights import weights_of
from torch import Tensor

from doublehead.common.errors import DoubleheadError
from doublehead.model.checkpoint import load_model
from doublehead.model.interop.convert import COCO, convert, convert_back
from doublehead.model.interop.detectron2 import CONV_FC, FASTER_RCNN


@pytest.mark.parametrize("depth", [50, 101])
def test_every_key_of_the_published_models_is_used(depth: int) -> None:
    weights = published_keys(depth)
    config, classes, ours = FASTER_RCNN.load(weights, {})
    assert (config.backbone.name, classes, len(ours)) == (f"resnet{depth}", 80, len(weights))
    assert (config.rpn.anchors, config.roi.aligned, config.roi.sampling_ratio) == ("mmdetection", True, 0)
    assert config.backbone.own.stride_in == "1x1"


@pytest.mark.parametrize("counted", [True, False])
def test_the_box_parts_of_a_new_baseline_are_read(counted: bool) -> None:
    """Its norms learn, whether the file has counters of their batches or not; the mask head is left out."""
    weights = published_keys(50, baseline=True, counted=counted)
    assert any("mask_head" in key for key in weights)
    config, classes, ours = CONV_FC.load(weights, {})
    assert (classes, [b.trunk for b in config.branches]) == (80, ["convfc"])
    assert (config.backbone.norm, config.fpn.norm, config.rpn.depth) == ("batch", "batch", 2)
    assert config.convfc_head.convs == 4  # type: ignore[attr-defined]
    assert "roi_heads.heads.0.branches.0.trunk.convs.3.1.num_batches_tracked" in ours
    back = CONV_FC.save(config, {key: torch.empty(value.shape) for key, value in ours.items()})
    assert {k for k in weights if "mask_head" not in k} <= back.keys()


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    """MMDetection's golden model, whose layers are those of detectron2, under detectron2's keys and in its layout."""
    source = weights_of("mmdetection")
    config, _, ours = _mmdetections_backbone(source)
    names = {new: old for old, new in FASTER_RCNN.table}
    result = {}
    for key, value in ours.items():
        prefix = next(p for p in names if key.startswith(p))
        result[names[prefix] + key.removeprefix(prefix)] = value
    generator = torch.Generator().manual_seed(0)
    width = config.fpn.channels * 49
    for name, shape in {
        "box_head.fc1": (24, width), "box_head.fc2": (24, 24), "box_predictor.cls_score": (4, 24),
        "box_predictor.bbox_pred": (12, 24),
    }.items():  # fmt: skip
        result[f"roi_heads.{name}.weight"] = torch.randn(shape, generator=generator) * (0.5 if shape[0] < 20 else 0.1)
        result[f"roi_heads.{name}.bias"] = torch.randn(shape[:1], generator=generator) * 0.1
    result["backbone.bottom_up.stem.conv1.weight"] = result["backbone.bottom_up.stem.conv1.weight"].flip(1)
    return result


def _mmdetections_backbone(source: dict[str, Tensor]) -> tuple[Any, int, dict[str, Tensor]]:
    from doublehead.model.interop.mmdetection import DOUBLE_HEAD

    config, classes, ours = DOUBLE_HEAD.load(source, {})
    return config, classes, {key: value for key, value in ours.items() if not key.startswith("roi_heads.")}


def written(weights: dict[str, Tensor], path: Path, **beside: Any) -> Path:
    content = {"model": {key: value.numpy() for key, value in weights.items()}, "__author__": "A. N. Other"} | beside
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_a_file_of_arrays_is_converted_and_goes_back(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    source = written(theirs, tmp_path / "model_final.pkl")
    convert(source, tmp_path / "ours.safetensors", settings={"model.backbone.resnet.stride_in": "3x3"})
    model, checkpoint = load_model(tmp_path / "ours.safetensors")
    assert checkpoint.config.backbone.own.stride_in == "3x3"
    assert model.detect([torch.rand(3, 64, 96)])[0]["labels"].max() <= 3
    key = "backbone.body.conv1.weight"
    assert torch.equal(checkpoint.weights[key].flip(1), theirs["backbone.bottom_up.stem.conv1.weight"])
    head = "roi_heads.box_predictor."
    ours = next(v for k, v in checkpoint.weights.items() if k.endswith("0.classifier.weight"))
    assert torch.equal(ours[0], theirs[f"{head}cls_score.weight"][-1])
    assert torch.equal(ours[1:], theirs[f"{head}cls_score.weight"][:-1])
    convert_back(tmp_path / "ours.safetensors", tmp_path / "back.pth", "detectron2")
    back = torch.load(tmp_path / "back.pth")["model"]
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in back)


def test_mean_and_colours_give_the_numbers_that_detectron2_feeds_its_network(theirs: dict[str, Tensor]) -> None:
    config, _, ours = FASTER_RCNN.load(theirs, {})
    image = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(1)).float()
    bgr = image.flip(0) - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    expected = torch.nn.functional.conv2d(bgr[None], theirs["backbone.bottom_up.stem.conv1.weight"], stride=2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.input.mean, config.input.std))
    found = torch.nn.functional.conv2d(((image / 255 - mean) / std)[None], ours["backbone.body.conv1.weight"], stride=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_eighty_classes_are_cocos(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    wide = dict(theirs)
    for name, rows in (("cls_score", 81), ("bbox_pred", 320)):
        for part in ("weight", "bias"):
            key = f"roi_heads.box_predictor.{name}.{part}"
            wide[key] = torch.zeros(rows, *wide[key].shape[1:])
    convert(written(wide, tmp_path / "a.pkl"), tmp_path / "b.safetensors")
    assert load_model(tmp_path / "b.safetensors")[1].categories == COCO


class Marker:
    """Pickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_a_pickle_of_arrays_runs_no_code(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    source = written(theirs, tmp_path / "evil.pkl", extra=Marker(marker))
    with pytest.raises(DoubleheadError, match=r"evil\.pkl: holds more than numpy arrays \((_?io|builtins)\.open\)"):
        convert(source, tmp_path / "b.safetensors")
    hidden = np.array([Marker(marker)], dtype=object)
    source = written(theirs, tmp_path / "hidden.pkl", extra=hidden)
    with pytest.raises(DoubleheadError, match=r"hidden\.pkl: holds more than numpy arrays"):
        convert(source, tmp_path / "b.safetensors")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04 cut", b"<html>Sign in</html>"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(DoubleheadError, match=r"a\.pkl: cannot be read as weights"):
        convert(tmp_path / "a.pkl", tmp_path / "b.safetensors")
