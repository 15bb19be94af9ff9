"""`export`, and exported files in place of weights: on the command line and in Python."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ready_models import OTHERS_CONVENTIONS, ready_model

import doublehead
from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig, merge
from doublehead.data.images import read_image, to_tensor
from doublehead.deploy import export as export_module
from doublehead.deploy.openvino import write_openvino
from doublehead.deploy.parity import compare
from doublehead.inference.exported import open_exported
from doublehead.model.checkpoint import load_checkpoint, save_checkpoint
from doublehead.model.optimize import for_inference
from doublehead.model.presets import preset_values

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture(scope="session")
def files(trained, once) -> dict[str, Path]:
    """The trained model as ONNX and OpenVINO."""

    def fill(folder: Path) -> None:
        folder.mkdir()
        written = export_module.export(trained / "best.safetensors", folder / "model.onnx")
        write_openvino(written.path, written.about, written.path.with_suffix(".xml"))

    folder = once("exported, by comma", fill)
    return {"onnx": folder / "model.onnx", "openvino": folder / "model.xml"}


@pytest.fixture(autouse=True)
def compiled_once(once, monkeypatch) -> None:
    """OpenVINO compiles a file when it is opened first, as for a user."""
    monkeypatch.setenv("DOUBLEHEAD_CACHE", str(once("cache", Path.mkdir)))


@pytest.fixture
def ready_made(files, monkeypatch) -> None:
    """Spares tracing: what is exported is the file from before."""
    monkeypatch.setattr(export_module, "write_onnx", lambda graph, about, path: shutil.copy(files["onnx"], path))


def pictures(dataset: Path) -> list[torch.Tensor]:
    """Images of several sizes; resizing those to the input's size rounds nothing."""
    scenes = [read_image(file) for file in sorted((dataset / "test").iterdir())]
    turned = [
        scenes[0].transpose(Image.Transpose.ROTATE_90),
        scenes[1].resize((192, 128)),
        scenes[2].crop((0, 0, 64, 64)),
    ]
    noise = Image.effect_noise((90, 64), 80).convert("RGB")
    return [to_tensor(picture) for picture in [*scenes, *turned, noise]]


@pytest.mark.long
def test_the_command_says_what_it_wrote_and_how_it_compares(trained, tmp_path, command, ready_made):
    outcome = command("export", trained / "best.safetensors", "-o", tmp_path / "new" / "a.onnx")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{tmp_path / 'new' / 'a.onnx'} holds double-head, 6 classes, at most 50 owners; ")
    assert "compared with the checkpoint, on 6 images " in outcome.out
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.onnx"]
    outcome = command("export", trained / "best.safetensors", "-o", tmp_path / "b.xml", "--format", "openvino")
    assert outcome.code == 0, outcome.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.bin", "b.xml", "new"]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_finds_what_the_checkpoint_finds(trained, files, dataset, kind):
    images = pictures(dataset)
    checkpoint, exported = doublehead.load(trained / "best.safetensors", "cpu"), doublehead.load(files[kind], "cpu")
    for image in images:
        parity = compare(checkpoint.model.detect([image]), exported.inside.detect([image]))
        assert parity.detections > 0
        assert parity.share > 0.98
        assert parity.difference < 1e-3
    several = exported.detect(images)
    assert all(one == exported.detect([image])[0] for one, image in zip(several, images, strict=True))


@pytest.mark.long
def test_conventions_of_others_and_an_image_without_detections(tmp_path):
    model, black = ready_model("double-head-ext", **OTHERS_CONVENTIONS), torch.zeros(3, 96, 100, dtype=torch.uint8)
    while len(for_inference(model, torch.device("cpu")).detect([black])[0]["scores"]):
        with torch.no_grad():  # until the background wins there
            model.roi_heads.last.branches[0].classifier.bias[0] += 0.5
    weights = tmp_path / "model.safetensors"
    save_checkpoint(weights, model.config, Categories(("a", "b", "c", "d"), (3, 5, 7, 9)), model.state_dict(), {})
    written = export_module.export(weights, tmp_path / "model.onnx")
    assert written.about["variant"] == "double-head-ext"
    write_openvino(written.path, written.about, tmp_path / "model.xml")
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((96, 128), (128, 96), (192, 192))]
    expected = for_inference(model, torch.device("cpu"))
    for path in (written.path, tmp_path / "model.xml"):
        exported = open_exported(path)
        parity = compare([expected.detect([image])[0] for image in images], exported.detect(images))
        assert parity.detections > 20
        assert parity.share > 0.97, path
        assert parity.difference < 1e-3
        assert [len(found) for found in exported.detect([black])[0].values()] == [0, 0, 0]


@pytest.mark.long
def test_openvino_compiles_once_whatever_becomes_of_its_cache(files, dataset, tmp_path, monkeypatch):
    images = pictures(dataset)
    expected = open_exported(files["openvino"]).detect(images)
    monkeypatch.setenv("DOUBLEHEAD_CACHE", str(tmp_path / "cache"))

    def found_as_before():
        found = open_exported(files["openvino"]).detect(images)
        assert [f["labels"].tolist() for f in found] == [e["labels"].tolist() for e in expected]

    found_as_before()
    (compiled,) = (tmp_path / "cache").rglob("*.blob")
    written = compiled.stat().st_mtime_ns
    found_as_before()
    assert [*(tmp_path / "cache").rglob("*.blob")] == [compiled]
    assert compiled.stat().st_mtime_ns == written
    whole = compiled.read_bytes()
    compiled.chmod(0o600)
    for spoiled in (whole[: len(whole) // 2], b""):
        compiled.write_bytes(spoiled)
        found_as_before()
    assert {file.name for file in files["openvino"].parent.iterdir()} == {"model.onnx", "model.xml", "model.bin"}


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_file_says_what_it_is(trained, files, kind):
    about = open_exported(files[kind]).about
    config = load_checkpoint(trained / "best.safetensors").config
    assert (about["doublehead"], about["variant"], about["precision"]) == (
        doublehead.__version__,
        "double-head",
        "fp32",
    )
    assert json.loads(about["thresholds"]) == {"score_threshold": 0.01, "nms_iou": 0.5, "detections": 100}
    assert json.loads(about["categories"])["ids"] == [7, 17, 27, 37, 47, 57]
    assert json.loads(about["model"]) == json.loads(config.model_dump_json())
    loaded = doublehead.load(files[kind])
    assert loaded.categories == load_checkpoint(trained / "best.safetensors").categories


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_file_names_no_folder_of_the_machine(trained, files, kind):
    data = files[kind].read_bytes()
    for folder in (Path(doublehead.__file__).parents[1], Path(torch.__file__).parents[1], Path.home(), trained.parent):
        assert str(folder).encode() + b"/" not in data


def test_other_programs_can_read_it(files):
    model = onnx.load(files["onnx"])
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["boxes", "scores", "labels"]
    assert "doublehead" in {entry.key for entry in model.metadata_props}


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_predict_and_evaluate_take_it_in_place_of_weights(trained, files, dataset, tmp_path, command, kind):
    outcome = command("predict", files[kind], dataset / "test", "-o", tmp_path / "p", "--score", 0.05)
    assert outcome.code == 0, outcome.err
    assert len(json.loads((tmp_path / "p" / "predictions.json").read_text())["images"]) == 3
    outcome = command("evaluate", files[kind], dataset, "--split", "test", "-o", tmp_path / "e", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    expected = doublehead.evaluate(trained / "best.safetensors", dataset, "test", batch_size=1, device="cpu").metrics
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["AP"] == pytest.approx(expected["AP"], abs=1e-3)


@pytest.mark.long
def test_benchmark_measures_all_on_the_same_images(trained, files, dataset, tmp_path, command, monkeypatch):
    monkeypatch.setattr("benchmarks.measure.WARM_UP", 0)
    words = ("benchmark", "export", trained / "best.safetensors", *files.values(), dataset, "--split", "test")
    outcome = command(*words, "--repeats", 1, "--json", tmp_path / "a.json")
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [str(path) for path in (trained / "best.safetensors", *files.values())]
    assert rows[0]["score_difference"] == 0
    for row in rows:
        assert row["seconds"] > 0
        assert row["ap"] == pytest.approx(rows[0]["ap"], abs=1e-3)
        assert row["matched"] >= 0.98 * row["detections"] > 0


def test_what_finds_something_else_is_not_kept(trained, tmp_path, command, ready_made):
    checkpoint = load_checkpoint(trained / "best.safetensors")
    weights = {key: value * (0.5 if "regressor" in key else 1) for key, value in checkpoint.weights.items()}
    save_checkpoint(tmp_path / "other.safetensors", checkpoint.config, checkpoint.categories, weights, {})
    sentence = command("export", tmp_path / "other.safetensors", "-o", tmp_path / "a.onnx").sentence
    assert sentence.startswith(f"{tmp_path / 'a.onnx'} was not written: it finds other detections than the checkpoint")
    assert [file.name for file in tmp_path.iterdir()] == ["other.safetensors"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("-o", "a.onnx", "--format", "openvino"), "a.onnx: the output file must end in .xml"),
        (("-o", "a.pt"), "a.pt: the output file must end in .onnx, in .xml for OpenVINO, or in .tflite"),
        (("-o", "a.onnx", "--format", "tflite"), "--format tflite: is unknown; use onnx or openvino"),
        (("-o", "a.onnx", "--int8", "data"), "a.onnx: int8 is available only for OpenVINO; give a file that ends in"),
        (("-o", "a.onnx", "--images", "none.jpg"), "none.jpg: no image found there"),
    ],
)
def test_a_mistake_in_exporting(trained, command, words, sentence):
    assert command("export", trained / "best.safetensors", *words).sentence.startswith(sentence)


@pytest.mark.parametrize(("module", "output"), [("onnxscript", "a.onnx"), ("openvino", "a.xml")])
def test_without_the_extra(trained, tmp_path, monkeypatch, command, module, output):
    monkeypatch.setitem(sys.modules, module, None)
    extra = "openvino" if module == "openvino" else "export"
    wanted = f"this needs {module}, which is not installed: pip install 'doublehead[{extra}]'"
    assert command("export", trained / "best.safetensors", "-o", tmp_path / output).sentence == wanted


@pytest.mark.parametrize(("kind", "module"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_without_the_runtime(files, dataset, monkeypatch, command, kind, module):
    monkeypatch.setitem(sys.modules, module, None)
    outcome = command("predict", files[kind], dataset / "test")
    assert f"this needs {module}, which is not installed" in outcome.sentence


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_what_an_exported_file_cannot_do(trained, files, dataset, command, kind):
    path = files[kind]
    outcome = command("predict", path, dataset / "test", "--precision", "bf16")
    assert outcome.sentence.startswith(f"{path}: its precision was fixed at export")
    for words in (("analyze", path, dataset), ("benchmark", "owners", path, dataset)):
        assert command(*words).sentence == f"{path}: is exported and cannot be inspected; give its checkpoint"
    sentence = command("train", dataset, "--model", path).sentence
    assert "is exported and works only with `predict` and `evaluate`; give its checkpoint" in sentence
    with pytest.raises(DoubleheadError, match="--device cpu"):
        doublehead.load(path, "cuda:0")


def test_options_of_an_exported_file(files, dataset):
    """What the file finds can be cut down further; all else is fixed, and the sentence says where it can be set."""
    usual = doublehead.load(files["onnx"], "cpu")
    image = pictures(dataset)[0]
    (everything,) = usual.detect([image])
    assert len(everything) > 3
    (few,) = usual.with_options(detections=2).detect([image])
    assert few.scores.tolist() == everything.scores[:2].tolist()
    limit = float(everything.scores[2])
    (strict,) = usual.with_options(score_threshold=limit).detect([image])
    assert strict.scores.tolist() == [score for score in everything.scores.tolist() if score > limit]
    known, best = usual.categories.names[0], everything.class_names[0]
    (of_class,) = usual.with_options(class_thresholds={best: limit}).detect([image])
    kept = [n != best or score > limit for n, score in zip(everything.class_names, everything.scores, strict=True)]
    assert of_class == everything[kept]
    for name, value, fix in (
        ("class_thresholds", {known: 0.0}, "checkpoint"),
        ("nms", "linear", "--set"),
        ("detections", usual.options.detections + 1, "--set"),
        ("score_threshold", 0.0, "--set"),
        ("nms_iou", 0.3, "--set"),
        ("classes", [known], "checkpoint"),
    ):
        with pytest.raises(DoubleheadError, match=f"model.onnx: {name} .*{fix}"):
            usual.with_options(**{name: value})


def test_soft_nms_cannot_be_exported(trained, tmp_path, command):
    outcome = command("export", trained / "best.safetensors", "-o", tmp_path / "a.onnx", "--set", "nms=gaussian")
    assert "nms=hard" in outcome.sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["classes", "precision"])
def test_options_that_no_file_keeps(trained, tmp_path, name, command):
    outcome = command("export", trained / "best.safetensors", "-o", tmp_path / "a.onnx", "--set", f"{name}=fp32")
    assert f"`{name}`" in outcome.sentence
    assert not list(tmp_path.iterdir())


def test_settings_choose_no_other_precision(files):
    """As the argument does: what the file has, or a sentence."""
    assert doublehead.load(files["onnx"], "cpu", settings={"precision": "auto"}).options.precision == "fp32"
    with pytest.raises(DoubleheadError, match="its precision was fixed"):
        doublehead.load(files["onnx"], "cpu", settings={"precision": "bf16"})


def test_a_file_whose_model_is_of_another_version(files, tmp_path, command, dataset):
    model = onnx.load(files["onnx"])
    for entry in model.metadata_props:
        if entry.key == "model":
            entry.value = entry.value.replace('"branches"', '"limbs"')
    onnx.save(model, tmp_path / "a.onnx")
    sentence = command("predict", tmp_path / "a.onnx", dataset / "test").sentence
    assert sentence.startswith(f"{tmp_path / 'a.onnx'}: is a model, but not one")


def test_damaged_and_foreign_files(files, dataset, tmp_path, command):
    def sentence(name):
        return command("predict", tmp_path / name, dataset / "test").sentence

    whole = files["onnx"].read_bytes()
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    foreign = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]), ir_version=10)
    contents = {
        "is damaged or not an ONNX model": (whole[: len(whole) // 2], b"", np.random.default_rng(0).bytes(3000)),
        "is a model, but not one that `doublehead export` wrote": (foreign.SerializeToString(),),
    }
    for start, several in contents.items():
        for content in several:
            (tmp_path / "a.onnx").write_bytes(content)
            assert sentence("a.onnx").startswith(f"{tmp_path / 'a.onnx'}: {start}")
    assert "there is no such file" in sentence("none.xml")
    (tmp_path / "a.xml").write_bytes(files["openvino"].read_bytes())
    assert "its weights, a.bin, are missing beside it" in sentence("a.xml")
    (tmp_path / "a.bin").write_bytes(b"")
    assert "is damaged or not an OpenVINO model" in sentence("a.xml")


def test_an_exported_file_sees_tiles_and_mirrored_images(files, dataset):
    usual = doublehead.load(files["onnx"], "cpu", settings={"tiles": 96})
    images = [image for image in pictures(dataset) if max(image.shape) <= 96]  # of one tile
    assert len(images) > 3
    assert usual.detect(images) == doublehead.load(files["onnx"], "cpu").detect(images)
    large = torch.cat([images[0], images[1]], 2)
    (whole,) = usual.with_options(tiles=None).detect([large])
    (found,) = usual.with_options(flip=True, overlap=0.3).detect([large])
    assert len(found)
    assert found != whole
    assert found.boxes.max() > 96
    with pytest.raises(DoubleheadError, match="scales is fixed"):
        usual.with_options(scales=[1, 2])


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("double-head-fused-tiny", {}, "double-head-fused"),
        ("double-head-fused-tiny", {"roi": {"box_fusion": "largest"}}, "custom"),
        ("double-head-ext-tiny", {"roi": {"box_fusion": "average"}}, "double-head-ext"),
        ("cascade-double-head-tiny", {}, "cascade-double-head"),
    ],
)
def test_a_variant_is_named_by_its_branches_and_by_how_its_boxes_are_fused(name, settings, expected):
    config = ModelConfig.model_validate(merge(preset_values(name), settings))
    assert export_module.variant(config) == expected
