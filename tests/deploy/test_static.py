"""Files with static shapes, and those for TensorRT: from `export` to `predict` and `evaluate`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

import doublehead
from doublehead.data.images import read_image, to_tensor
from doublehead.deploy import export as export_module
from doublehead.deploy.openvino import write_openvino
from doublehead.deploy.parity import compare
from doublehead.deploy.tensorrt import OPERATORS
from doublehead.inference.exported import open_exported

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WORDS = ("--static", 96, 64)


@pytest.fixture(scope="session")
def written(trained, tmp_path_factory) -> export_module.ExportWritten:
    """The trained model for TensorRT, for two images at once: it takes most of a minute, so what needs it is long."""
    path = tmp_path_factory.mktemp("static") / "model.onnx"
    return export_module.export(trained / "best.safetensors", path, static=(96, 64), batch_size=2, target="tensorrt")


@pytest.fixture(scope="session")
def scenes(dataset) -> list[torch.Tensor]:
    """Images of the size that the file is made for."""
    return [to_tensor(read_image(file)) for file in sorted((dataset / "test").iterdir())]


@pytest.mark.long
def test_says_what_it_takes(written):
    canvas = json.loads(written.about["canvas"])
    assert canvas["batch"] == 2
    assert canvas["height"] % 32 == canvas["width"] % 32 == 0
    assert f", input 2 x 3 x {canvas['height']} x {canvas['width']}; compared with the checkpoint" in str(written)
    assert written.parity.share > 0.98


@pytest.mark.long
def test_shapes_are_static_and_operators_are_tensorrts(written):
    model = onnx.load(written.path)
    onnx.checker.check_model(model, full_check=True)
    canvas = json.loads(written.about["canvas"])
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": [2, 3, canvas["height"], canvas["width"]],
        "sizes": [2, 2],
        "boxes": [2, 100, 4],
        "scores": [2, 100],
        "labels": [2, 100],
    }
    used = {node.op_type for node in model.graph.node}
    assert {"NonMaxSuppression", "RoiAlign"} <= used <= OPERATORS
    assert not used & {"If", "Loop", "Scan", "NonZero"}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [node.op_type for node in model.graph.node if "images" in node.input] == [
        "Cast"
    ]  # TensorRT has no other uint8
    types = {entry.type.tensor_type.elem_type for entry in model.graph.value_info}
    assert not types & {onnx.TensorProto.DOUBLE, onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED}


@pytest.mark.long
def test_finds_what_the_checkpoint_finds_one_or_several_at_once(trained, written, scenes):
    checkpoint, exported = doublehead.load(trained / "best.safetensors", "cpu"), open_exported(written.path, "cpu")
    several = exported.detect(scenes)
    assert len(several) == len(scenes) == 3
    for image, one in zip(scenes, several, strict=True):
        parity = compare(checkpoint.model.detect([image]), [one])
        assert parity.detections > 0
        assert parity.share > 0.98
        assert parity.difference < 1e-3
        assert compare([one], exported.detect([image])).share == 1


@pytest.mark.long
def test_images_of_other_sizes_are_made_to_fit(written, scenes):
    exported = doublehead.load(written.path, "cpu")
    tall = scenes[0].transpose(1, 2)
    (found,) = exported.detect([tall])
    assert len(found)
    assert found.boxes[:, 2].max() <= tall.shape[2] + 1e-3
    assert found.boxes[:, 3].max() <= tall.shape[1] + 1e-3


@pytest.mark.long
def test_openvino_runs_it_too(written, scenes, tmp_path):
    pytest.importorskip("openvino")
    write_openvino(written.path, written.about, tmp_path / "model.xml")
    expected, found = (open_exported(path, "cpu").detect(scenes) for path in (written.path, tmp_path / "model.xml"))
    assert compare(expected, found).share > 0.98


@pytest.mark.long
def test_predict_and_evaluate_take_it_in_place_of_weights(trained, written, dataset, tmp_path, command):
    outcome = command("predict", written.path, dataset / "test", "-o", tmp_path / "p", "--score", 0.05)
    assert outcome.code == 0, outcome.err
    assert len(json.loads((tmp_path / "p" / "predictions.json").read_text())["images"]) == 3
    outcome = command("evaluate", written.path, dataset, "--split", "test", "-o", tmp_path / "e", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    expected = doublehead.evaluate(trained / "best.safetensors", dataset, "test", batch_size=1, device="cpu").metrics
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["AP"] == pytest.approx(expected["AP"], abs=1e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--target", "npu", *WORDS), "--target npu: is not known; use tensorrt"),
        (
            ("--target", "tensorrt"),
            "--target tensorrt: needs static shapes; add --static and your images' width and height",
        ),
        (("--batch-size", 2), "--batch-size 2: needs static shapes; add --static"),
        (("--static", 640, 20), "--static 640 20: give width and height in pixels, 64 or more"),
        ((*WORDS, "--set", "score_floor=0.1"), "how many proposals pass roi.score_floor is not known beforehand"),
    ],
)
def test_options_that_do_not_go_together(trained, tmp_path, command, words, sentence):
    outcome = command("export", trained / "best.safetensors", "-o", tmp_path / "a.onnx", *words)
    assert sentence in outcome.sentence
    assert not list(tmp_path.iterdir())


def test_options_that_openvino_does_not_take(trained, dataset, tmp_path, command):
    pytest.importorskip("openvino")
    words = ("export", trained / "best.safetensors", "-o", tmp_path / "a.xml", *WORDS)
    assert "TensorRT reads ONNX; give a file that ends in .onnx" in command(*words, "--target", "tensorrt").sentence
    assert "int8 needs shapes that are not static" in command(*words, "--int8", dataset).sentence
    assert not list(tmp_path.iterdir())


@pytest.fixture
def ready_made(written, monkeypatch) -> None:
    """Spares tracing: what is exported is the file from before."""
    monkeypatch.setattr(export_module, "write_onnx", lambda graph, about, path: shutil.copy(written.path, path))


@pytest.mark.long
def test_an_operator_outside_the_list_is_refused(trained, tmp_path, monkeypatch, command, ready_made):
    monkeypatch.setattr("doublehead.deploy.tensorrt.OPERATORS", OPERATORS - {"RoiAlign"})
    words = (*WORDS, "--batch-size", 2, "--target", "tensorrt")
    sentence = command("export", trained / "best.safetensors", "-o", tmp_path / "a.onnx", *words).sentence
    assert sentence.startswith(f"{tmp_path / 'a.onnx'} was not written: TensorRT 10.15 has no operator RoiAlign; ")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_images_to_compare_with_must_have_the_size(trained, tmp_path, command, ready_made):
    Image.new("RGB", (64, 200)).save(tmp_path / "tall.png")
    words = (*WORDS, "--images", tmp_path / "tall.png")
    sentence = command("export", trained / "best.safetensors", "-o", tmp_path / "a.onnx", *words).sentence
    assert sentence.startswith("--images: the model resizes none of them to 96 x 64")
    assert [file.name for file in tmp_path.iterdir()] == ["tall.png"]
