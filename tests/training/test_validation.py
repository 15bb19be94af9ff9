"""What is measured on the val split, what decides which weights are the best, and early stopping."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from dataclasses import replace

import pytest
from whole_runs import MODEL, SHORT, assert_same_run, stop_at

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.model.checkpoint import load_checkpoint
from doublehead.training import validation
from doublehead.training.metric import Metric
from doublehead.training.recipes import resolve
from doublehead.training.signals import Interrupted
from small import flags, rows, without_boxes

pytestmark = pytest.mark.usefixtures("no_pictures")
RUN = SHORT | {"train.epochs": 6, "train.steps": None, "train.evaluate_every": 1, "train.batch_size": 4}
"""Twelve steps, with a validation after every second one."""


@pytest.fixture
def measures(monkeypatch):
    """Give the values of AP that the coming validations find."""
    real = validation.evaluate_detections

    def give(*aps):
        left = iter(aps)

        def measured(*arguments):
            found = real(*arguments)
            return replace(found, totals=found.totals | {"AP": next(left)})

        monkeypatch.setattr(validation, "evaluate_detections", measured)

    return give


def ended(run):
    return json.loads((run / "environment.json").read_text())[-1].get("ended")


def test_the_losses_on_the_val_split_stand_beside_the_figures(dataset, tmp_path):
    doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN | {"train.epochs": 2})
    first, second = rows(tmp_path / "run" / "validation.csv")
    trained = rows(tmp_path / "run" / "training.csv")[0]
    parts = trained.keys() - {"step", "epoch", "lr", "loss"}
    assert parts == {"rpn_classify", "rpn_regress", "fc_classify", "conv_regress"}
    for row in (first, second):
        assert row["loss"] == pytest.approx(sum(row[part] for part in parts), rel=1e-4)
        assert all(math.isfinite(row[part]) for part in parts)
    assert first["loss"] != second["loss"]


def test_without_validation_loss_the_file_has_none(dataset, tmp_path):
    settings = RUN | {"train.epochs": 1, "train.validation_loss": False}
    doublehead.train(dataset, MODEL, tmp_path / "run", settings=settings)
    assert "loss" not in rows(tmp_path / "run" / "validation.csv")[0]


def test_the_loss_can_decide_which_weights_are_the_best(dataset, tmp_path):
    settings = RUN | {"train.metric": "loss", "train.lr": 0.003}
    best = doublehead.train(dataset, MODEL, tmp_path / "run", settings=settings)
    least = min(rows(tmp_path / "run" / "validation.csv"), key=lambda row: row["loss"])
    notes = load_checkpoint(best).notes
    assert notes["step"] == least["step"]
    assert notes["best"] == pytest.approx(least["loss"], rel=1e-5)


def test_the_ap_of_a_class_can_decide_and_has_a_column(dataset, tmp_path, command):
    settings = RUN | {"train.epochs": 2, "train.metric": "cross", "model.roi.score_threshold": 0.0}
    outcome = command("train", dataset, "--model", MODEL, "-o", tmp_path / "run", *flags(settings))
    assert outcome.code == 0, outcome.err
    measured = rows(tmp_path / "run" / "validation.csv")
    assert all(0 <= row["AP of cross"] <= 1 for row in measured)
    notes = load_checkpoint(tmp_path / "run" / "best.safetensors").notes
    assert notes["best"] == pytest.approx(max(row["AP of cross"] for row in measured), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "values", "kept"),
    [
        ("AP", [0.2, 0.5, 0.5, 0.3], [0, 1]),
        ("loss", [3.0, 2.0, 2.5, 2.0, 1.0], [0, 1, 4]),
        ("loss", [math.nan, 2.0, math.inf, math.nan], [0, 1]),
        ("AP", [math.nan, math.nan], [0, 1]),  # a val split without boxes: the newest weights
        ("AP", [0.0, 0.0], [0]),
    ],
)
def test_which_measurements_improve(name, values, kept):
    best, found = -1.0, []
    for place, value in enumerate(values):
        if Metric(name).improves(value, best):
            found.append(place)
            best = value if math.isfinite(value) else best
    assert found == kept


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"train.metric": "dog"},
            "train.metric dog: is neither a metric nor a class of the data; use one of AP, AP50, AP75",
        ),
        ({"train.patience": 2, "data.val_split": None}, "train.patience needs a val split"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(dataset, tmp_path, settings, said):
    with pytest.raises(DoubleheadError, match=said):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN | settings)
    assert not (tmp_path / "run").exists()


def test_a_class_without_boxes_to_measure_on_is_refused(own_dataset, tmp_path):
    without_boxes(own_dataset, "val")
    with pytest.raises(DoubleheadError, match="the val split has no box of this class"):
        doublehead.train(own_dataset, MODEL, tmp_path / "run", settings=RUN | {"train.metric": "cross"})


def test_the_loss_as_metric_must_be_measured():
    with pytest.raises(DoubleheadError, match="metric loss needs validation_loss=true"):
        resolve(MODEL, settings={"train.metric": "loss", "train.validation_loss": False})


def test_a_run_stops_early_and_says_why(dataset, tmp_path, measures, capsys):
    measures(0.2, 0.5, 0.3, 0.4)
    run = doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN | {"train.patience": 2}).parent
    said = capsys.readouterr().err
    assert "stopped early at step 8 of 12: AP has not improved for 2 validations" in said
    assert "best AP 0.500 at step 4" in said
    assert ended(run) == {"step": 8, "why": "AP has not improved for 2 validations"}
    assert load_checkpoint(run / "best.safetensors").notes["step"] == 4
    assert load_checkpoint(run / "last.safetensors").notes["step"] == 8
    doublehead.resume(run)
    assert rows(run / "training.csv")[-1]["step"] == 8
    assert ended(run)["step"] == 8


def test_a_run_with_patience_left_goes_to_its_end(dataset, tmp_path, measures):
    measures(0.2, 0.1, 0.3, 0.2, 0.4, 0.3)
    run = doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN | {"train.patience": 2}).parent
    assert ended(run) == {"step": 12, "why": "all steps are done"}


@pytest.mark.parametrize("step", [3, 6, 7], ids=["before it counts", "where it counts", "after it has counted"])
def test_early_stopping_survives_a_stop(dataset, tmp_path, monkeypatch, measures, step):
    settings = RUN | {"train.patience": 2}
    measures(0.2, 0.5, 0.3, 0.4)
    whole = doublehead.train(dataset, MODEL, tmp_path / "whole", settings=settings).parent
    measures(0.2, 0.5, 0.3, 0.4)
    stop_at(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=settings)
    doublehead.resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_file_of_an_earlier_version_keeps_its_columns(dataset, tmp_path, monkeypatch):
    """Rows with more figures than the header names would be unreadable."""
    stop_at(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN)
    path = tmp_path / "run" / "validation.csv"
    with path.open(newline="") as file:
        table = [row[:5] for row in csv.reader(file)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(table)
    doublehead.resume(tmp_path / "run")
    with path.open(newline="") as file:
        assert {len(row) for row in csv.reader(file)} == {5}
    assert [row["step"] for row in rows(path)] == [2, 4, 6, 8, 10, 12]
