"""The commands as a person at the keyboard meets them, mistakes included."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import save_file

import doublehead
from doublehead.common.device import pick_device
from doublehead.common.errors import DoubleheadError
from small import SMALL, flags

TINY = ("--model", "double-head-tiny", *flags(SMALL | {"train.steps": 1}))
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def listing(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


def test_version(command):
    outcome = command("--version")
    assert (outcome.code, outcome.out) == (0, f"{doublehead.__version__}\n")


def test_help_names_every_command(command):
    outcome = command("--help")
    assert outcome.code == 0
    names = "models check to-coco synthesize train resume evaluate calibrate predict export serve benchmark"
    for name in names.split():
        assert f" {name} " in outcome.out


def test_importing_the_package_brings_no_optional_one():
    optional = ("matplotlib", "supervision", "fastapi", "uvicorn", "prometheus_client", "pyarrow", "ray", "av")
    optional += ("huggingface_hub", "onnx", "onnxruntime", "openvino")
    script = f"import sys, doublehead, doublehead.cli; print([m for m in {optional} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("width", [60, 200])
def test_models_are_listed_by_their_whole_names(command, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("doublehead.model.presets.PRESETS", ("double-head-tiny", "double-head-reverse-r18"))
    lines = command("models").out.splitlines()
    cells = [re.findall(r"[^\s│]+", line) for line in lines]
    assert [row[0] for row in cells if row and row[-1].count("x") == 1] == [
        "double-head-tiny",
        "double-head-reverse-r18",
    ]


def test_synthesize_writes_a_dataset_that_trains(tmp_path, command):
    outcome = command("synthesize", tmp_path / "data", "--train", 2, "--val", 1, "--test", 0)
    assert outcome.out == f"3 images are in {tmp_path / 'data'}\n"
    assert command("train", tmp_path / "data", *TINY, "-o", tmp_path / "run").code == 0


def test_train_says_where_everything_is(dataset, trained, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    outcome = command("train", dataset, *TINY)
    run = tmp_path / "runs" / "shapes-double-head-tiny"
    names = ["best.safetensors", "config.yaml", "curves.png", "environment.json", "last.safetensors"]
    names += ["predictions.jpg", "training.csv", "validation.csv"]
    assert sorted(path.name for path in run.iterdir()) == names
    for name in names:
        assert f"  runs/shapes-double-head-tiny/{name}\n" in outcome.err
    assert command("train", dataset, *TINY).code == 0
    assert (tmp_path / "runs" / "shapes-double-head-tiny-2").is_dir()
    assert Image.open(run / "predictions.jpg").width > 96


def test_evaluate_measures_what_pycocotools_measures(trained, dataset, tmp_path, command):
    output = tmp_path / "out"
    words = ("--split", "test", "-o", output, "--device", "cpu")
    outcome = command("evaluate", trained / "best.safetensors", dataset, *words)
    assert outcome.code == 0
    assert "3 images" in outcome.out
    assert str(output) in outcome.out
    assert {"index.html", "metrics.json", "predictions.json"} < {file.name for file in output.iterdir()}
    truth = COCO(dataset / "annotations" / "instances_test.json")
    referee = COCOeval(truth, truth.loadRes(str(output / "predictions.json")), "bbox")
    referee.evaluate()
    referee.accumulate()
    referee.summarize()
    metrics = json.loads((output / "metrics.json").read_text())
    expected = [None if value == -1 else value for value in referee.stats]
    assert [metrics[name] for name in FIGURES] == pytest.approx(expected)
    assert json.loads((output / "predictions.json").read_text())
    in_python = doublehead.evaluate(trained / "best.safetensors", dataset, "test", device="cpu")
    assert in_python.metrics["AP50"] == metrics["AP50"]


def test_evaluate_writes_beside_the_weights_by_default(trained, dataset, command):
    assert command("evaluate", trained / "best.safetensors", dataset, "--device", "cpu").code == 0
    assert (trained / "evaluation-val" / "metrics.json").exists()


def test_nothing_is_written_into_the_dataset(dataset, trained, tmp_path, monkeypatch, command):
    before = listing(dataset)
    monkeypatch.chdir(tmp_path)
    assert command("train", dataset, *TINY).code == 0
    assert command("evaluate", trained / "best.safetensors", dataset, "-o", "evaluation", "--device", "cpu").code == 0
    assert command("predict", trained / "best.safetensors", dataset / "test", "--device", "cpu").code == 0
    assert listing(dataset) == before


def test_without_matplotlib_all_else_is_done(dataset, trained, tmp_path, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = command("train", dataset, *TINY, "-o", tmp_path / "run")
    assert outcome.code == 0
    missing = "no curves drawn: this needs matplotlib, which is not installed: pip install 'doublehead[plots]'\n"
    assert missing in outcome.err
    assert (tmp_path / "run" / "predictions.jpg").exists()
    outcome = command("evaluate", trained / "best.safetensors", dataset, "-o", tmp_path / "out", "--device", "cpu")
    assert outcome.code == 0
    assert missing in outcome.out
    assert (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    "command_words", [("train", "{data}", "--model", "double-head-tiny"), ("evaluate", "{weights}", "{data}")]
)
@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nowhere", "there is no such dataset"),
        ("empty", "no dataset found there"),
        ("empty/x.txt", "there is no such dataset"),
    ],
)
def test_a_wrong_dataset_path(trained, tmp_path, command, command_words, path, sentence):
    (tmp_path / "empty").mkdir()
    places = {"data": tmp_path / path, "weights": trained / "best.safetensors"}
    outcome = command(*(word.format(**places) for word in command_words), "--device", "cpu")
    assert outcome.sentence.startswith(f"{tmp_path / path}: {sentence}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--model", "double-haed-tiny"), "unknown model `double-haed-tiny`: did you mean double-head-tiny"),
        ((*TINY, "--recipe", "scrach"), "unknown recipe `scrach`: did you mean scratch?"),
        ((*TINY, "--set", "train.epoch=3"), "settings: unknown key `train.epoch`"),
        ((*TINY, "--set", "train.epochs"), "--set train.epochs: write it as key=value"),
        ((*TINY, "--config", "none.yaml"), "none.yaml: cannot be read as YAML"),
        ((*TINY, "--set", "data.train_split=trian"), "has no split `trian`; it has train, val, test"),
        ((*TINY, "--set", "model.backbone.weights=none.pth"), "model.backbone.weights=none.pth: there is no such file"),
        ((*TINY, "--set", "model.backbone.norm=frozen"), "must learn all its stages and norms"),
        ((*TINY, "--set", "train.batch_size=3", "--set", "train.accumulate=2"), "train.batch_size 3 cannot be divided"),
    ],
)
def test_a_mistake_in_training(dataset, tmp_path, command, words, sentence):
    outcome = command("train", dataset, "-o", tmp_path / "run", *words)
    assert sentence in outcome.sentence
    assert not (tmp_path / "run").exists()  # so that the fixed command runs


def test_training_without_data(command, tmp_path):
    assert command("train", *TINY, "-o", tmp_path / "run").sentence.startswith("which data? give the dataset's folder")


def test_an_unreadable_training_image_is_named_before_training(own_dataset, tmp_path, command):
    bad = sorted((own_dataset / "train").iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:-200])
    outcome = command("train", own_dataset, *TINY, "-o", tmp_path / "run")
    assert outcome.sentence.startswith(f"{bad}: is damaged or cut short")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_left_alone(dataset, trained, command):
    before = listing(trained)
    outcome = command("train", dataset, *TINY, "-o", trained)
    assert outcome.sentence == (
        f"{trained}: already holds a run; resume it with `doublehead resume {trained}`, or give another --output"
    )
    assert listing(trained) == before


def test_a_folder_that_cannot_be_written(dataset, tmp_path, command):
    (tmp_path / "file").touch()
    outcome = command("train", dataset, *TINY, "-o", tmp_path / "file" / "run")
    assert str(tmp_path / "file" / "run") in outcome.sentence


def test_resuming_where_no_run_is(dataset, tmp_path, command):
    assert command("resume", tmp_path).sentence.startswith(f"{tmp_path}: holds no run")
    (tmp_path / "config.yaml").write_text("model: {}")
    assert command("resume", tmp_path).sentence == f"{tmp_path / 'config.yaml'}: `model.branches`: Field required"


def test_resuming_from_weights_alone(trained, tmp_path, command):
    (tmp_path / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    (tmp_path / "last.safetensors").write_bytes((trained / "best.safetensors").read_bytes())
    assert "holds weights, but no state of a run to resume" in command("resume", tmp_path).sentence


def test_a_split_that_does_not_exist(trained, dataset, command):
    outcome = command("evaluate", trained / "best.safetensors", dataset, "--split", "tset", "--device", "cpu")
    assert outcome.sentence == f"{dataset}: has no split `tset`; it has train, val, test"


def test_weights_of_other_classes(trained, own_dataset, command):
    file = own_dataset / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 99, "name": "spiral"})
    file.write_text(json.dumps(content))
    outcome = command("evaluate", trained / "best.safetensors", own_dataset, "--device", "cpu")
    assert outcome.sentence.startswith(
        "the weights have the classes `circle` (id 7), `square` (id 17), `triangle` (id 27), `star` (id 37) and 2 "
        "more, but lack `spiral` (id 99) of the data: use weights"
    )
    content["categories"].pop()
    content["categories"][1]["name"] = "spiral"
    file.write_text(json.dumps(content))
    outcome = command("evaluate", trained / "best.safetensors", own_dataset, "--device", "cpu")
    assert ", but lack `spiral` (id 17) of the data: use weights" in outcome.sentence


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_damaged_weights_are_named_and_run_no_code(trained, tmp_path, command):
    whole = (trained / "best.safetensors").read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48)).save(photo)
    contents = {
        "cut short": whole[: len(whole) // 2],
        "empty": b"",
        "random": os.urandom(5000),
        "a pickle": pickle.dumps(Trap(tmp_path / "sprung")),
        "another's": other.read_bytes(),
    }
    for what, content in contents.items():
        damaged.write_bytes(content)
        outcome = command("predict", damaged, photo)
        assert outcome.sentence.startswith(f"{damaged}: is "), what
    assert not (tmp_path / "sprung").exists()
    assert "there is no such file" in command("predict", tmp_path / "none.safetensors", photo).sentence


def test_backbone_weights_run_no_code(dataset, tmp_path, command):
    weights = tmp_path / "resnet18.pth"
    weights.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    outcome = command("train", dataset, *TINY, "--set", f"model.backbone.weights={weights}", "-o", tmp_path / "run")
    assert outcome.sentence.startswith(f"model.backbone.weights={weights}: holds more than weights (io.open)")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "abacus", "mps", "meta"])
def test_a_device_that_is_not_there(trained, dataset, tmp_path, command, device):
    with pytest.raises(DoubleheadError) as error:
        pick_device(device)
    sentence = str(error.value)
    assert sentence.startswith(f'Device "{device}" is ')
    settings = flags({k: v for k, v in SMALL.items() if k != "train.device"})
    words = ("--model", "double-head-tiny", *settings, "--device", device, "-o", tmp_path / "run")
    assert command("train", dataset, *words).sentence == sentence
    assert command("evaluate", trained / "best.safetensors", dataset, "--device", device).sentence == sentence
    assert command("predict", trained / "best.safetensors", dataset / "test", "--device", device).sentence == sentence


def test_no_image_is_found(trained, tmp_path, command):
    outcome = command("predict", trained / "best.safetensors", tmp_path, "--device", "cpu")
    assert outcome.sentence.startswith(f"{tmp_path}: no image found there")


def test_half_writes_16_bits_that_detect_alike(trained, dataset, tmp_path, command):
    small = tmp_path / "small.safetensors"
    assert command("convert", trained / "best.safetensors", small, "--half").code == 0
    assert small.stat().st_size < 0.6 * (trained / "best.safetensors").stat().st_size
    image = next((dataset / "test").glob("*.jpg"))
    full, halved = (doublehead.load(path, "cpu").predict(image) for path in (trained / "best.safetensors", small))
    assert len(full) == len(halved) > 0
    assert halved.scores == pytest.approx(full.scores, abs=0.02)
    refused = command("convert", small, tmp_path / "theirs.pth", "--half", "--to", "mmdetection")
    assert "--half" in refused.sentence


def test_completion_knows_the_commands():
    words = {"_DOUBLEHEAD_COMPLETE": "complete_bash", "COMP_WORDS": "doublehead pre", "COMP_CWORD": "1"}
    script = "import sys; sys.argv = ['doublehead']; from doublehead.cli import app; app(prog_name='doublehead')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | words)
    assert done.stdout.split() == ["predict"], done.stderr
