"""A converted model is an ordinary one: it predicts, is measured, learns and goes back."""

from __future__ import annotations

import json
import threading
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from golden_weights import weights_of
from PIL import Image

import doublehead
from doublehead.model.checkpoint import load_checkpoint
from doublehead.model.interop import published
from doublehead.model.interop.catalogue import Published
from doublehead.model.interop.convert import convert
from small import SMALL, config_of, flags

# The run's own numbers; the model's are those of the weights.
RUN = {key: value for key, value in SMALL.items() if not key.startswith("model.")} | {"train.steps": 2}


@pytest.fixture(params=["mmdetection", "authors"])
def converted(request, tmp_path) -> Path:
    torch.save({"state_dict": weights_of(request.param)}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors", settings={"model.input.short_side": 96})
    return tmp_path / "a.safetensors"


def like_the_weights(dataset: Path) -> Path:
    """Gives the dataset the converted model's classes."""
    for file in (dataset / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        content["categories"] = [{"id": n, "name": f"class {n}"} for n in range(1, 6)]
        for annotation in content["annotations"]:
            annotation["category_id"] = 1 + annotation["category_id"] // 10 % 5
        file.write_text(json.dumps(content))
    return dataset


def test_it_predicts_and_is_measured(converted, own_dataset, tmp_path, command) -> None:
    data = like_the_weights(own_dataset)
    outcome = command("evaluate", converted, data, "--device", "cpu", "-o", tmp_path / "evaluation")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["detections"] > 0
    outcome = command("predict", converted, data / "val", "--device", "cpu", "-o", tmp_path / "out", "--score", "0.1")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]


def test_it_learns_further_with_its_own_classes(converted, own_dataset, tmp_path, command) -> None:
    run = tmp_path / "run"
    settings = RUN | {"train.lr": 1e-6, "train.optimizer": "adamw"}
    outcome = command("train", like_the_weights(own_dataset), "--model", converted, "-o", run, *flags(settings))
    assert outcome.code == 0, outcome.err
    assert f"starting from {converted}; new are no layers" in outcome.err + outcome.out
    before, after = load_checkpoint(converted), load_checkpoint(run / "last.safetensors")
    assert after.config == before.config
    moved = {key for key, value in after.weights.items() if not torch.equal(value, before.weights[key])}
    assert "roi_heads.heads.0.branches.0.classifier.weight" in moved
    assert not any(key.startswith("backbone.body.layer1.") for key in moved)  # frozen
    for key in (key for key in moved if key.endswith("weight")):  # two steps of AdamW go no further than twice the rate
        torch.testing.assert_close(after.weights[key], before.weights[key], atol=1e-4, rtol=1e-4)


def test_it_learns_other_classes(converted, dataset, tmp_path, command) -> None:
    run = tmp_path / "run"
    settings = RUN | {"train.lr": 1e-6, "train.optimizer": "adamw"}
    outcome = command("train", dataset, "--model", converted, "-o", run, *flags(settings))
    assert outcome.code == 0, outcome.err
    assert "; new are roi_heads.heads.0.branches.0.classifier, roi_heads.heads.0.branches." in outcome.err + outcome.out
    before, after = load_checkpoint(converted), load_checkpoint(run / "last.safetensors")
    assert len(after.categories) == 6
    key = "roi_heads.heads.0.branches.1.trunk.blocks.0.conv1.weight"
    torch.testing.assert_close(after.weights[key], before.weights[key], atol=1e-4, rtol=1e-4)
    assert config_of(run)["train"]["weights"] == str(converted)
    assert command("resume", run).code == 0


def test_starting_from_a_file_that_is_no_checkpoint(converted, dataset, tmp_path, command) -> None:
    outcome = command("train", dataset, "--model", converted.with_name("a.pth"), "-o", tmp_path / "run")
    assert outcome.sentence.startswith(f"{converted.with_name('a.pth')}: ")
    assert "doublehead convert" in outcome.sentence
    assert not (tmp_path / "run").exists()


def test_classes_that_the_data_lacks_are_left_out(converted, own_dataset, command, tmp_path) -> None:
    """The model knows five classes, the data two of them: figures are of the two."""
    data = like_the_weights(own_dataset)
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"] = content["categories"][1:3]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in (2, 3)]
    file.write_text(json.dumps(content))
    assert command("evaluate", converted, data, "--device", "cpu", "-o", tmp_path / "out").code == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [c["name"] for c in metrics["classes"]] == ["class 2", "class 3"]
    assert {r["category_id"] for r in json.loads((tmp_path / "out" / "predictions.json").read_text())} <= {2, 3}


def test_an_ext_models_heads_are_chosen_by_settings(tmp_path) -> None:
    torch.save(weights_of("authors"), tmp_path / "a.pth")
    settings = {"model.roi.score_branch": "fc", "model.input.short_side": 96}
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors", settings=settings)
    assert load_checkpoint(tmp_path / "a.safetensors").config.roi.score_branch == "fc"
    with pytest.raises(
        doublehead.DoubleheadError, match=r"roi\.box_branch: no branch `fc2` can regress; choose fc or conv"
    ):
        convert(tmp_path / "a.pth", tmp_path / "b.safetensors", settings={"model.roi.box_branch": "fc2"})


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


def test_a_published_name_is_fetched_and_used(tmp_path, monkeypatch, command) -> None:
    """From the publisher's file to detections, by name, in the commands and from Python."""
    folder = tmp_path / "server"
    folder.mkdir()
    torch.save({"meta": {"CLASSES": tuple("abcde")}, "state_dict": weights_of("mmdetection")}, folder / "theirs.pth")
    file = f"theirs-{sha256((folder / 'theirs.pth').read_bytes()).hexdigest()[:8]}.pth"
    (folder / "theirs.pth").rename(folder / file)
    Image.new("RGB", (96, 64), (200, 180, 90)).save(tmp_path / "photo.jpg")
    monkeypatch.setenv("DOUBLEHEAD_CACHE", str(tmp_path / "cache"))
    name = "mmdet-double-head-r50-coco"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        entry = Published(f"http://127.0.0.1:{server.server_port}/{file}", 40.0, "mmdetection:DOUBLE_HEAD")
        monkeypatch.setitem(published.PUBLISHED, name, entry)
        outcome = command("predict", name, tmp_path / "photo.jpg", "-o", tmp_path / "out", "--device", "cpu")
        server.shutdown()
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "out" / "photo.jpg").exists()
    predictor = doublehead.load(name, device="cpu")  # the server is gone: this one is from the cache
    assert predictor.categories.names == tuple("abcde")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{name}.safetensors"]
