from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_weights import weights_of
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig, override
from doublehead.data.images import to_tensor
from doublehead.model.checkpoint import load_checkpoint, load_model, save_checkpoint
from doublehead.model.detector import Detector
from doublehead.model.interop.convert import COCO, convert, convert_back
from doublehead.model.presets import preset_values

HEAD = "roi_head.bbox_head."
PHOTOS = Path(__file__).resolve().parents[4] / "shared" / "data" / "photos"


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    return weights_of("mmdetection")


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def loaded(source: Path, **options: Any) -> Any:
    destination = source.with_name("converted.safetensors")
    destination.unlink(missing_ok=True)
    convert(source, destination, **options)
    return load_checkpoint(destination)


# What is read


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "meta": {"epoch": 12}, "optimizer": {"state": {0: {"momentum": torch.ones(3)}}}},
        lambda w: {"model": w, "iteration": 90_000, "scheduler": {"last_epoch": 3}},
        lambda w: {"model": {f"module.{key}": value for key, value in w.items()}},
    ],
    ids=["alone", "state_dict", "model", "module"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_in_what_programs_save(theirs, tmp_path, wrap, zipped) -> None:
    plain = loaded(saved(theirs, tmp_path / "plain.pth")).weights
    source = saved(wrap(theirs), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = loaded(source).weights
    assert all(torch.equal(found[key], plain[key]) for key in plain | found)


def test_safetensors_are_read_and_written(theirs, tmp_path) -> None:
    save_file(theirs, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "new" / "b.safetensors")
    convert_back(tmp_path / "new" / "b.safetensors", tmp_path / "new" / "c.safetensors", "mmdetection")
    assert (tmp_path / "new" / "c.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


class Marker:
    """Pickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_does_not_run(theirs, tmp_path, command, zipped) -> None:
    marker = tmp_path / "marker"
    content = {"state_dict": theirs, "meta": Marker(marker)}
    source = saved(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    sentence = command("convert", source, tmp_path / "b.safetensors").sentence
    assert sentence.startswith(f"{source}: holds more than weights (io.open) and would have to run code")
    assert "torch.save only its state dict" in sentence
    assert not marker.exists()
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"<html>Sign in</html>", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_files_that_hold_no_weights(tmp_path, command, content, name) -> None:
    (tmp_path / name).write_bytes(content)
    sentence = command("convert", tmp_path / name, tmp_path / "b.safetensors").sentence
    assert sentence.startswith(f"{tmp_path / name}: cannot be read as weights")


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"a": 1}, [torch.ones(2)], torch.ones(2)])
def test_pickles_that_hold_no_weights(tmp_path, content) -> None:
    with pytest.raises(DoubleheadError, match="holds no weights"):
        loaded(saved(content, tmp_path / "a.pth"))


def test_weights_of_another_network(tmp_path, command) -> None:
    source = saved({"patch_embed.weight": torch.ones(3)}, tmp_path / "a.pth")
    sentence = command("convert", source, tmp_path / "b.safetensors").sentence
    assert sentence.startswith(
        f"{source}: its keys (patch_embed.weight, ...) are of none of these: Double-Head R-CNN of"
    )


def test_keys_missing_and_left_over_are_listed(theirs, tmp_path) -> None:
    spoilt = dict(theirs) | {"mask_head.conv.weight": torch.ones(1)}
    del spoilt[f"{HEAD}conv_branch.1.conv2.weight"], spoilt["neck.fpn_convs.0.conv.bias"], spoilt[f"{HEAD}fc_cls.bias"]
    with pytest.raises(DoubleheadError) as error:
        loaded(saved(spoilt, tmp_path / "a.pth"))
    first, _, second = str(error.value).partition("; unexpected: ")
    assert first.startswith(f"{tmp_path / 'a.pth'}: is an incomplete Double-Head R-CNN of MMDetection: missing: ")
    for key in (f"{HEAD}conv_branch.1.conv2.weight", "neck.fpn_convs.0.conv.bias", f"{HEAD}fc_cls.bias"):
        assert key in first
    assert second == "mask_head.conv.weight"


def test_shapes_that_do_not_fit_together(theirs, tmp_path) -> None:
    spoilt = dict(theirs) | {f"{HEAD}fc_branch.1.weight": torch.ones(32, 31)}
    with pytest.raises(
        DoubleheadError, match=r"fc_branch\.1\.weight has the shape \(32, 31\) where \(32, 32\) is wanted"
    ):
        loaded(saved(spoilt, tmp_path / "a.pth"))
    spoilt = {k: v for k, v in theirs.items() if "layer3.5" not in k}
    with pytest.raises(DoubleheadError, match=r"has a ResNet of \(3, 4, 5, 3\) blocks; the ones known are resnet18"):
        loaded(saved(spoilt, tmp_path / "a.pth"))


def test_nothing_is_written_over(theirs, tmp_path, command) -> None:
    source = saved(theirs, tmp_path / "a.pth")
    before = source.read_bytes()
    assert command("convert", source, source).sentence == f"{source}: exists already; remove it or give another name"
    assert source.read_bytes() == before


def test_a_checkpoint_is_called_one(theirs, tmp_path, command) -> None:
    sentence = command("convert", saved(theirs, tmp_path / "a.pth"), tmp_path / "b.pth").sentence
    assert sentence == f"{tmp_path / 'b.pth'}: a checkpoint's name ends in .safetensors"


# What comes of it


def test_class_agnostic_boxes_are_read_off_the_shape(tmp_path) -> None:
    weights = weights_of("mmdetection")
    for part in ("weight", "bias"):
        weights[f"{HEAD}fc_reg.{part}"] = weights[f"{HEAD}fc_reg.{part}"][:4]
    checkpoint = loaded(saved(weights, tmp_path / "a.pth"))
    assert checkpoint.config.roi.class_agnostic
    assert torch.equal(
        checkpoint.weights["roi_heads.heads.0.branches.1.regressor.weight"], weights[f"{HEAD}fc_reg.weight"]
    )
    weights = weights_of("authors")
    for key in [key for key in weights if "bbox_pred" in key and "rpn" not in key]:
        weights[key] = weights[key][:8]  # the background's four and the object's
    checkpoint = loaded(saved(weights, tmp_path / "a.pth"))
    assert checkpoint.config.roi.class_agnostic
    key = "roi_heads.box.predictor.bbox_pred_fc.bias"
    assert torch.equal(checkpoint.weights["roi_heads.heads.0.branches.0.regressor.bias"], weights[key][4:])
    assert checkpoint.build().detect([torch.rand(3, 64, 96)])
    convert_back(tmp_path / "converted.safetensors", tmp_path / "back.pth", "authors")
    assert all(v.shape == weights[k].shape for k, v in torch.load(tmp_path / "back.pth")["model"].items())


def test_the_authors_anchors_are_read_off_their_weights(tmp_path) -> None:
    weights = weights_of("authors")
    key = "rpn.anchor_generator.cell_anchors.0"
    halved = weights | {key: torch.tensor([[-10.0, -4.0, 13.0, 7.0], [-6.0, -6.0, 9.0, 9.0], [-4.0, -10.0, 7.0, 13.0]])}
    assert loaded(saved(halved, tmp_path / "a.pth")).config.rpn.anchor_sizes == (16, 64, 128, 256, 512)
    with pytest.raises(DoubleheadError, match="not of one size per level"):
        loaded(saved(weights | {key: weights[key] * 1.1}, tmp_path / "a.pth"))


def test_settings_that_the_weights_do_not_tell(theirs, tmp_path, command) -> None:
    source = saved(theirs, tmp_path / "a.pth")
    sizes = "model.rpn.anchor_sizes=[8, 16, 32, 64, 128]"
    outcome = command("convert", source, tmp_path / "b.safetensors", "--set", sizes)
    assert f"{tmp_path / 'b.safetensors'} holds Double-Head R-CNN of MMDetection: resnet50, 5 classes" in outcome.out
    assert load_checkpoint(tmp_path / "b.safetensors").config.rpn.anchor_sizes == (8, 16, 32, 64, 128)
    outcome = command("convert", source, tmp_path / "c.safetensors", "--set", "model.rpn.anchor_size=[8]")
    assert outcome.sentence == "settings: unknown key `rpn.anchor_size`"
    outcome = command("convert", source, tmp_path / "c.safetensors", "--set", "train.lr=1")
    assert outcome.sentence == "settings of a conversion begin with `model.`, unlike `train.lr`"


@pytest.mark.parametrize(
    ("beside", "names", "ids"),
    [
        ({}, ("class 1", "class 2", "class 3", "class 4", "class 5"), (1, 2, 3, 4, 5)),
        ({"meta": {"CLASSES": ("a", "b", "c", "d", "e")}}, ("a", "b", "c", "d", "e"), (1, 2, 3, 4, 5)),
        ({"meta": {"dataset_meta": {"classes": list("abcde")}}}, ("a", "b", "c", "d", "e"), (1, 2, 3, 4, 5)),
        ({"meta": {"CLASSES": ("a", "b")}}, ("class 1", "class 2", "class 3", "class 4", "class 5"), (1, 2, 3, 4, 5)),
        ({"meta": "mine"}, ("class 1", "class 2", "class 3", "class 4", "class 5"), (1, 2, 3, 4, 5)),
    ],
)
def test_names_of_classes_come_from_the_file(theirs, tmp_path, beside, names, ids) -> None:
    assert loaded(saved({"state_dict": theirs} | beside, tmp_path / "a.pth")).categories == Categories(names, ids)


def test_names_of_classes_come_from_annotations(theirs, tmp_path, command) -> None:
    entries = [{"id": 10 * n, "name": f"kind {n}"} for n in range(1, 6)]
    file, source = tmp_path / "instances.json", saved(theirs, tmp_path / "a.pth")
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": entries}))
    assert command("convert", source, tmp_path / "b.safetensors", "--categories", file).code == 0
    assert load_checkpoint(tmp_path / "b.safetensors").categories.pairs[1] == ("kind 2", 20)
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": entries[:4]}))
    sentence = command("convert", source, tmp_path / "c.safetensors", "--categories", file).sentence
    assert sentence == f"{file}: has 4 categories, but {source} 5"


def with_classes(weights: dict[str, Tensor], classes: int) -> dict[str, Tensor]:
    """The same detector (MMDetection's) for another number of classes."""
    result = dict(weights)
    for part in ("weight", "bias"):
        for key, rows in ((f"{HEAD}fc_cls.{part}", classes + 1), (f"{HEAD}fc_reg.{part}", 4 * classes)):
            result[key] = torch.zeros(rows, *weights[key].shape[1:])
    return result


def test_eighty_classes_are_cocos(theirs, tmp_path) -> None:
    categories = loaded(saved(with_classes(theirs, 80), tmp_path / "a.pth")).categories
    assert categories == COCO
    assert len(categories) == 80
    assert [categories.pairs[n] for n in (0, 1, 11, 79)] == [
        ("person", 1),
        ("bicycle", 2),
        ("stop sign", 13),
        ("toothbrush", 90),
    ]


# torchvision


def torchvisions(norm: Callable[..., torch.nn.Module] = FrozenBatchNorm2d) -> torch.nn.Module:
    """Four classes with the background; the published weights are used with the frozen norm, without an eps."""
    torch.manual_seed(0)
    sizes = {"min_size": 96, "max_size": 128, "box_score_thresh": 0.26}
    model = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm), 4, **sizes)
    overwrite_eps(model, 0.0)
    return model.eval()


def old_spelling(key: str) -> str:
    for kind in ("inner_blocks", "layer_blocks"):
        for n in range(4):
            key = key.replace(f"fpn.{kind}.{n}.0.", f"fpn.{kind}.{n}.")
    return key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")


@pytest.mark.parametrize(
    ("norm", "spelling"),
    [(FrozenBatchNorm2d, str), (FrozenBatchNorm2d, old_spelling), (torch.nn.BatchNorm2d, str)],
    ids=["today", "published", "from scratch"],
)
def test_torchvisions_detector_gives_torchvisions_detections(tmp_path, norm, spelling) -> None:
    theirs_model = torchvisions(norm)
    source = saved({spelling(k): v for k, v in theirs_model.state_dict().items()}, tmp_path / "a.pth")
    settings = {"model.input.short_side": 96, "model.input.long_side": 128, "model.roi.score_threshold": 0.26}
    convert(source, tmp_path / "b.safetensors", settings=settings)
    model, checkpoint = load_model(tmp_path / "b.safetensors")
    assert [b.trunk for b in checkpoint.config.branches] == ["fc"]
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (theirs,) = theirs_model([image])
    (ours,) = model.detect([image])
    assert len(theirs["boxes"]) == len(ours["boxes"]) > 5
    for key in ("boxes", "scores", "labels"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-3)


def torchvisions_v2(classes: int) -> torch.nn.Module:
    """With norms that have seen data, and few detections that nearly tie."""
    torch.manual_seed(0)
    sizes = {"min_size": 96, "max_size": 128, "box_score_thresh": 0.26}
    model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=classes, **sizes).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.2)  # type: ignore[union-attr]
    return model


def torchvisions_mobilenet(classes: int) -> torch.nn.Module:
    """Norms that have seen data, and scores that are spread about."""
    torch.manual_seed(0)
    backbone = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True)
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3)
    sizes = {"min_size": 96, "max_size": 128, "box_score_thresh": 0.26, "rpn_score_thresh": 0.05}
    model = FasterRCNN(backbone, classes, rpn_anchor_generator=anchors, **sizes).eval()
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.16, 0.24)
    model.rpn.head.cls_logits.weight.data *= 300  # so that some proposals score less than 0.05
    model.roi_heads.box_predictor.cls_score.weight.data *= 10
    return model


@pytest.mark.parametrize("build", [torchvisions_v2, torchvisions_mobilenet])
def test_torchvisions_other_detectors_give_their_detections(tmp_path, build) -> None:
    theirs_model = build(4)
    source = saved(theirs_model.state_dict(), tmp_path / "a.pth")
    settings = {"model.input.short_side": 96, "model.input.long_side": 128, "model.roi.score_threshold": 0.26}
    convert(source, tmp_path / "b.safetensors", settings=settings)
    model, _ = load_model(tmp_path / "b.safetensors")
    photographs = sorted(PHOTOS.glob("*.jpg")) if PHOTOS.is_dir() else []
    images = [to_tensor(Image.open(path).convert("RGB").resize((128, 96))) / 255 for path in photographs]
    found = 0
    for image in [*images, torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))]:
        with torch.no_grad():
            (theirs,) = theirs_model([image])
        (ours,) = model.detect([image])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-2)
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-4)
        assert torch.equal(ours["labels"], theirs["labels"])
        found += len(ours["labels"])
    assert found > 5
    convert_back(tmp_path / "b.safetensors", tmp_path / "back.pth", "torchvision")
    back, original = torch.load(tmp_path / "back.pth"), theirs_model.state_dict()
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in back)


def test_our_single_fc_loads_into_torchvisions(tmp_path) -> None:
    config = ModelConfig.model_validate(preset_values("single-fc-r50"))
    weights = Detector(config, 3).state_dict()
    save_checkpoint(tmp_path / "a.safetensors", config, Categories(("a", "b", "c"), (1, 2, 3)), weights, {})
    convert_back(tmp_path / "a.safetensors", tmp_path / "b.pth", "torchvision")
    torchvisions().load_state_dict(torch.load(tmp_path / "b.pth"))


def test_published_torchvision_weights_have_their_91_classes(tmp_path) -> None:
    weights = dict(torchvisions().state_dict())
    for layer, rows in (("cls_score", 91), ("bbox_pred", 364)):
        for part in ("weight", "bias"):
            key = f"roi_heads.box_predictor.{layer}.{part}"
            weights[key] = torch.zeros(rows, *weights[key].shape[1:])
    categories = loaded(saved(weights, tmp_path / "a.pth")).categories
    assert categories.ids == tuple(range(1, 91))
    assert set(COCO.pairs) < set(categories.pairs)
    assert categories.names.count("N/A") == 10


# The way back


def test_models_that_compute_otherwise_are_not_written_for_another_program(tmp_path, command) -> None:
    narrow = {"backbone.norm": "frozen", "fpn.channels": 16, "fc_head.width": 16, "conv_head.width": 16}
    config = ModelConfig.model_validate(
        override(preset_values("double-head-tiny"), narrow | {"conv_head.blocks": "mmdetection"})
    )
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, config, Categories(("a",), (1,)), Detector(config, 1).state_dict(), {})
    sentence = command("convert", path, tmp_path / "b.pth", "--to", "mmdetection").sentence
    assert "rpn.anchors=torchvision, Double-Head R-CNN of MMDetection with mmdetection" in sentence
    sentence = command("convert", path, tmp_path / "b.pth", "--to", "torchvision").sentence
    assert "has keys that Faster R-CNN of torchvision lacks: unexpected: roi_heads.heads.0.branches.1" in sentence
    sentence = command("convert", path, tmp_path / "b.pth", "--to", "darknet").sentence
    assert sentence == "unknown program `darknet`: choose mmdetection, detectron2, authors, torchvision"
    assert not (tmp_path / "b.pth").exists()


def test_a_checkpoint_of_ours_is_copied_with_other_settings(theirs, tmp_path, command) -> None:
    convert(saved(theirs, tmp_path / "a.pth"), tmp_path / "b.safetensors")
    words = ("--set", "model.roi.nms_iou=0.6")
    assert command("convert", tmp_path / "b.safetensors", tmp_path / "c.safetensors", *words).code == 0
    before, after = (load_checkpoint(tmp_path / name) for name in ("b.safetensors", "c.safetensors"))
    assert after.config.roi.nms_iou == 0.6
    assert all(torch.equal(after.weights[key], value) for key, value in before.weights.items())


def test_names_go_back_to_mmdetection(theirs, tmp_path, command: Callable[..., Any]) -> None:
    source = saved({"state_dict": theirs, "meta": {"CLASSES": tuple("abcde")}}, tmp_path / "a.pth")
    convert(source, tmp_path / "b.safetensors")
    assert command("convert", tmp_path / "b.safetensors", tmp_path / "c.pth", "--to", "mmdetection").code == 0
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    assert content["meta"]["CLASSES"] == tuple("abcde")
    assert content["state_dict"].keys() == theirs.keys()
