"""Settings for rare classes in whole runs: deterministic, resumable, and refused where they cannot work."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from whole_runs import MODEL, SHORT, assert_same_run, stop_at

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.training.class_weights import class_weights
from doublehead.training.recipes import resolve
from doublehead.training.signals import Interrupted
from small import config_of, rows

pytestmark = pytest.mark.usefixtures("no_pictures")
SAMPLED = SHORT | {
    "data.repeat_threshold": 0.9,
    "data.image_weights": True,
    "train.class_weights": {"ring": 3.0},
    "model.roi.classification": "sigmoid",
    "model.roi.focal_gamma": 2.0,
}
WEIGHED = SHORT | {"train.class_weights": "balanced", "model.roi.focal_gamma": 1.5, "train.accumulate": 2}


@pytest.fixture(scope="module")
def weighted(tmp_path_factory, dataset):
    """The dataset with weights for its images: three times as many of the first, none of the second."""
    root = tmp_path_factory.mktemp("weighted") / "shapes"
    root.mkdir()
    for entry in dataset.iterdir():
        if entry.name != "annotations":
            (root / entry.name).symlink_to(entry)
    (root / "annotations").mkdir()
    for file in (dataset / "annotations").iterdir():
        content = json.loads(file.read_text())
        for image, weight in zip(content["images"], (3, 0), strict=False):
            image["weight"] = weight
        (root / "annotations" / file.name).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(("settings", "step"), [(SAMPLED, 6), (WEIGHED, 3)], ids=["sampled", "weighed"])
def test_killed_and_resumed_equals_never_stopped(weighted, tmp_path, monkeypatch, settings, step):
    doublehead.train(weighted, MODEL, tmp_path / "whole", settings=settings)
    stop_at(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        doublehead.train(weighted, MODEL, tmp_path / "run", settings=settings)
    doublehead.resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert config_of(tmp_path / "run")["train"]["class_weights"] == settings["train.class_weights"]


def test_an_epoch_counts_repetitions(weighted, tmp_path):
    settings = SHORT | {"train.steps": None, "train.epochs": 1, "data.image_weights": True, "data.val_split": None}
    doublehead.train(weighted, MODEL, tmp_path / "run", settings=settings)
    written = rows(tmp_path / "run" / "training.csv")
    assert [row["epoch"] for row in written] == [0.25, 0.5, 0.75, 1.0]  # 3 + 0 + 6 images, two a step


def test_other_weights_are_other_data(own_dataset, tmp_path):
    run = doublehead.train(own_dataset, MODEL, tmp_path / "run", settings=SHORT | {"train.steps": 1}).parent
    file = own_dataset / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["weight"] = 2
    file.write_text(json.dumps(content))
    with pytest.raises(DoubleheadError, match="its train data has changed"):
        doublehead.resume(run)


def test_balanced_weights_are_inverse_to_the_boxes(dataset):
    split = open_dataset(dataset).read("train")
    weights = class_weights("balanced", split)
    labels = torch.cat([torch.from_numpy(record.training_boxes()[1]) for record in split.records])
    assert weights[0] == 1
    assert weights[labels].mean() == pytest.approx(1)
    counts = torch.bincount(labels)[1:]
    torch.testing.assert_close(weights[1:] * counts, torch.full((6,), len(labels) / 6))


def test_weights_go_to_their_classes_and_unknown_ones_are_refused(dataset):
    split = open_dataset(dataset).read("train")
    found = class_weights({"ring": 3.0}, split)
    assert found.tolist() == [1.0, *(3.0 if name == "ring" else 1.0 for name in split.categories.names)]
    with pytest.raises(DoubleheadError, match="no class `dog`; its classes are circle"):
        class_weights({"dog": 2.0}, split)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.class_weights", {"ring": 0}),
        ("train.class_weights", "inverse"),
        ("data.repeat_threshold", 0),
        ("data.repeat_threshold", 1.5),
        ("model.roi.classification", "focal"),
        ("model.roi.focal_gamma", -1),
    ],
)
def test_values_without_meaning_are_refused(key, value):
    with pytest.raises(DoubleheadError, match=key):
        resolve(MODEL, settings={key: value})
