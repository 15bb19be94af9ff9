"""LiteRT: the operators written out for its converter, and files from `export` to `predict`."""

from __future__ import annotations

import json
import sys
import zipfile

import pytest
import torch
import torchvision
from PIL import Image

import doublehead
from doublehead.common.model_files import EXPORTED
from doublehead.data.images import read_image, to_tensor
from doublehead.deploy.export import FORMATS
from doublehead.deploy.litert import ROUNDS, kept_by_class_nms, roi_align, split
from doublehead.deploy.parity import compare
from doublehead.inference.exported import STARTS, open_exported
from doublehead.model import postprocess


def boxes_like(generator: torch.Generator, number: int, side: float) -> torch.Tensor:
    """Boxes xyxy (number, 4), many of which overlap."""
    corner = torch.rand(number, 2, generator=generator) * 60
    return torch.cat([corner, corner + side * (0.5 + torch.rand(number, 2, generator=generator))], 1)


def test_every_format_that_is_written_is_recognised_and_opened():
    assert set(FORMATS.values()) == set(EXPORTED) == set(STARTS)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("iou", [0.3, 0.7])
def test_nms_in_rounds_keeps_what_nms_keeps(seed, iou):
    generator = torch.Generator().manual_seed(seed)
    boxes = boxes_like(generator, 200, 20)
    scores = torch.rand(200, generator=generator).mul(50).floor() / 50  # many are tied, and some are 0
    labels = torch.randint(3, (200,), generator=generator)
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    expected = postprocess.kept_by_class_nms(boxes, scores, labels, iou, 3)
    assert 0 < expected.sum() < 200
    assert torch.equal(kept_by_class_nms(boxes, scores, labels, iou, 3), expected)


@pytest.mark.parametrize("length", [ROUNDS - 1, ROUNDS, ROUNDS + 1])
def test_a_chain_as_long_as_the_rounds_is_settled(length):
    left = torch.arange(length, dtype=torch.float32)[:, None] * 4
    boxes = torch.cat([left, left * 0, left + 10, left * 0 + 10], 1)  # each overlaps its neighbours, IoU 0.43
    scores = torch.linspace(1, 0.5, length)
    labels = torch.zeros(length, dtype=torch.int64)
    kept = kept_by_class_nms(boxes, scores, labels, 0.3, 1)
    assert torch.equal(kept[:ROUNDS], (torch.arange(length) % 2 == 0)[:ROUNDS])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling", [1, 2, 3])
def test_roi_align_is_torchvisions(aligned, sampling):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 5, 19, 23, generator=generator)
    rois = torch.cat([torch.randint(2, (60, 1), generator=generator).float(), boxes_like(generator, 60, 50) - 20], 1)
    rois[0, 1:] = torch.tensor([3.0, 3.0, 3.0, 3.0])  # without an area
    rois[1, 1:] = torch.tensor([-90.0, -90.0, -60.0, -60.0])  # outside
    expected = torchvision.ops.roi_align(features, rois, (7, 5), 0.25, sampling, aligned)
    torch.testing.assert_close(roi_align(features, rois, 0.25, 7, 5, sampling, aligned), expected, rtol=0, atol=1e-5)


def test_split_is_torchs():
    values = torch.arange(24).reshape(2, 12)
    for sizes in ([12], [5, 7], [1, 0, 11]):
        for mine, theirs in zip(split(values, sizes, 1), values.split(sizes, 1), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "words", [(), ("--static", 96, 64, "--int8", "data"), ("--static", 96, 64, "--target", "tensorrt")]
)
def test_export_names_what_does_not_fit(trained, tmp_path, command, words):
    pytest.importorskip("litert_torch")
    outcome = command("export", trained / "best.safetensors", "-o", tmp_path / "model.tflite", *words)
    assert outcome.code == 2
    assert "model.tflite" in outcome.sentence
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_extra_is_named(trained, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    output = tmp_path / "model.tflite"
    outcome = command("export", trained / "best.safetensors", "-o", output, "--static", 96, 64)
    assert outcome.code == 2
    assert "doublehead[litert]" in outcome.sentence
    output.write_bytes(b"TFL3")
    outcome = command("predict", output, tmp_path)
    assert outcome.code == 2
    assert "doublehead[litert]" in outcome.sentence


@pytest.fixture(scope="session")
def written(trained, tmp_path_factory):
    pytest.importorskip("litert_torch")
    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    return doublehead.deploy.export.export(trained / "best.safetensors", path, static=(96, 64), batch_size=2)


@pytest.mark.long
def test_a_file_finds_what_the_checkpoint_finds(trained, dataset, written):
    assert written.parity.share > 0.98
    scenes = [to_tensor(read_image(file)) for file in sorted((dataset / "test").iterdir())]
    checkpoint, exported = doublehead.load(trained / "best.safetensors", "cpu"), open_exported(written.path, "cpu")
    parity = compare(checkpoint.model.detect(scenes), exported.detect(scenes))
    assert parity.detections > 0
    assert parity.share > 0.98
    assert parity.difference < 1e-3


@pytest.mark.long
def test_a_file_holds_its_classes_as_tensorflow_lites_tools_expect(trained, written):
    with zipfile.ZipFile(written.path) as archive:
        names = archive.read("labels.txt").decode().split("\n")[:-1]
        assert json.loads(archive.read("doublehead.json")) == written.about
    assert names == list(doublehead.load(trained / "best.safetensors", "cpu").categories.names)


@pytest.mark.long
def test_predict_takes_a_file_in_place_of_weights(written, dataset, tmp_path, command):
    outcome = command("predict", written.path, dataset / "test", "-o", tmp_path / "p", "--score", 0.05)
    assert outcome.code == 0, outcome.err
    assert len(json.loads((tmp_path / "p" / "predictions.json").read_text())["images"]) == 3


@pytest.mark.long
@pytest.mark.parametrize("content", [b"", b"TFL3" * 20])
def test_a_damaged_file_is_named(tmp_path, command, content):
    pytest.importorskip("ai_edge_litert")
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    outcome = command("predict", path, tmp_path / "image.png", "-o", tmp_path / "p")
    assert outcome.code == 2
    assert "model.tflite" in outcome.sentence
