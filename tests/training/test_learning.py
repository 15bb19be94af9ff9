"""Whole runs: every variant learns, and the rough data that people have does not stop it."""

from statistics import mean

import pytest

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.data.loader import DetectionDataset
from doublehead.data.synthetic import synthesize
from doublehead.evaluation.coco import Metrics
from doublehead.model.checkpoint import load_checkpoint
from doublehead.model.variants import VARIANTS
from small import SMALL, rows, without_boxes

EVERY_DAY = ("single-fc", "double-head", "double-head-ext")
"""Variants that are trained in every run of the tests."""
ALONE = {"data.val_split": None, "data.augment.horizontal_flip": 0.0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two images with seven boxes, which every step sees again."""
    return synthesize(tmp_path_factory.mktemp("data") / "pair", {"train": 2}, seed=2, size=(96, 64))


def assert_losses_fall(run):
    losses = [row["loss"] for row in rows(run / "training.csv")]
    assert mean(losses[-5:]) < 0.75 * mean(losses[:5])


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=() if v in EVERY_DAY else pytest.mark.long) for v in VARIANTS]
)
def test_every_variant_learns_what_it_sees(pair, tmp_path, variant):
    settings = SMALL | ALONE | {"train.steps": 50, "train.lr": 3e-3}
    settings |= {"model.backbone.norm": "batch", "model.head_norm": "batch"}
    if variant == "single-convfc":
        settings |= {"model.convfc_head.conv_width": 32, "model.convfc_head.width": 128}
    doublehead.train(pair, f"{variant}-tiny", tmp_path / "run", settings=settings)
    assert_losses_fall(tmp_path / "run")


@pytest.mark.long
def test_mmdetections_form_of_the_conv_head_learns(pair, tmp_path):
    settings = SMALL | ALONE | {"train.steps": 80, "train.lr": 3e-3}
    settings |= {"model.conv_head.blocks": "mmdetection", "model.head_norm": "group"}
    doublehead.train(pair, "double-head-tiny", tmp_path / "run", settings=settings)
    assert_losses_fall(tmp_path / "run")


def test_images_without_boxes_train(own_dataset, tmp_path):
    without_boxes(own_dataset, "train", keep=1)
    settings = SMALL | ALONE | {"train.steps": 8}
    best = doublehead.train(own_dataset, "double-head-tiny", tmp_path / "run", settings=settings)
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(best).weights.values())


def test_a_training_split_without_any_box_is_refused(own_dataset, tmp_path):
    without_boxes(own_dataset, "train")
    with pytest.raises(DoubleheadError, match="split `train` has no boxes to learn from"):
        doublehead.train(own_dataset, "double-head-tiny", tmp_path / "run", settings=SMALL)


def test_without_a_val_split_the_last_weights_are_the_best(own_dataset, tmp_path, capsys):
    (own_dataset / "annotations" / "instances_val.json").unlink()
    settings = SMALL | {"train.steps": 2}
    best = doublehead.train(own_dataset, "double-head-tiny", tmp_path / "run", settings=settings)
    assert "no val split: training does not evaluate" in capsys.readouterr().err
    assert_same_weights(best, tmp_path / "run" / "last.safetensors")
    assert not (tmp_path / "run" / "validation.csv").exists()


def test_with_a_val_split_without_boxes_the_last_weights_are_the_best(own_dataset, tmp_path, capsys):
    without_boxes(own_dataset, "val")
    settings = SMALL | {"train.steps": 8, "train.evaluate_every": 1}
    best = doublehead.train(own_dataset, "double-head-tiny", tmp_path / "run", settings=settings)
    assert_same_weights(best, tmp_path / "run" / "last.safetensors")
    assert "best AP" not in capsys.readouterr().err


def assert_same_weights(one, other):
    one, other = load_checkpoint(one).weights, load_checkpoint(other).weights
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)


def test_best_keeps_the_weights_of_the_highest_ap(dataset, tmp_path, monkeypatch):
    aps = iter([0.2, 0.5, 0.3])

    def measured(records, categories, results, *limits):
        return Metrics({"AP": next(aps), "AP50": 0.0, "AP75": 0.0}, (), 0, 0, 0)

    monkeypatch.setattr("doublehead.training.validation.evaluate_detections", measured)
    settings = SMALL | {"train.epochs": 3, "train.evaluate_every": 1, "data.val_split": "val"}
    best = doublehead.train(dataset, "double-head-tiny", tmp_path / "run", settings=settings)
    assert load_checkpoint(best).notes == {"step": 8, "best": 0.5}
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").notes["step"] == 12
    assert [row["AP"] for row in rows(tmp_path / "run" / "validation.csv")] == [0.2, 0.5, 0.3]


def test_accumulation_sees_the_same_images(dataset, tmp_path, monkeypatch):
    def seen(accumulate):
        keys = []
        get = DetectionDataset.__getitem__
        monkeypatch.setattr(DetectionDataset, "__getitem__", lambda self, key: (keys.append(key), get(self, key))[1])
        settings = SMALL | ALONE | {"train.steps": 3, "train.batch_size": 4, "train.accumulate": accumulate}
        doublehead.train(dataset, "single-fc-tiny", tmp_path / str(accumulate), settings=settings)
        monkeypatch.setattr(DetectionDataset, "__getitem__", get)
        return keys

    whole = seen(1)
    assert len(whole) == 12
    assert seen(2) == whole


def test_a_batch_that_cannot_be_shared_out_is_refused(dataset, tmp_path):
    with pytest.raises(DoubleheadError, match=r"train.batch_size 2 cannot be divided .* train.accumulate 4"):
        doublehead.train(dataset, "single-fc-tiny", tmp_path / "run", settings=SMALL | {"train.accumulate": 4})
