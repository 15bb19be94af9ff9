"""A finished run continues with more epochs; what may change on resume is one documented list."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from whole_runs import MODEL, SHORT, assert_same_run, stop_at

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.training import validation
from doublehead.training.changes import MAY_CHANGE, changed
from doublehead.training.recipes import resolve
from doublehead.training.schedule import learning_rate
from doublehead.training.signals import Interrupted
from small import config_of, rows

pytestmark = pytest.mark.usefixtures("no_pictures")
RUN = SHORT | {"train.steps": None, "train.epochs": 2, "train.evaluate_every": 1, "train.batch_size": 4}
"""Four steps, with a validation after every second one."""
MORE = {"train.epochs": 4}


def entries(run):
    return json.loads((run / "environment.json").read_text())


def test_a_finished_run_continues_with_more_epochs(dataset, tmp_path, command):
    run = doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN).parent
    outcome = command("resume", run, "--set", "train.epochs=4")
    assert outcome.code == 0, outcome.err
    assert [row["step"] for row in rows(run / "training.csv")] == list(range(1, 9))
    assert [row["step"] for row in rows(run / "validation.csv")] == [2, 4, 6, 8]
    assert config_of(run)["train"]["epochs"] == 4
    first, second = entries(run)
    assert first["ended"] == {"step": 4, "why": "all steps are done"}
    assert second["changed"] == {"train.epochs": [2.0, 4.0]}
    assert (second["from_step"], second["ended"]["step"]) == (4, 8)


def test_where_the_rate_is_constant_it_ends_as_a_run_that_was_always_longer(dataset, tmp_path):
    settings = RUN | {"train.schedule": "steps", "train.milestones": []}
    whole = doublehead.train(dataset, MODEL, tmp_path / "whole", settings=settings | MORE).parent
    run = doublehead.train(dataset, MODEL, tmp_path / "run", settings=settings).parent
    doublehead.resume(run, settings=MORE)
    assert_same_run(run, whole)


def test_the_schedule_follows_the_new_length(dataset, tmp_path):
    run = doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN).parent
    doublehead.resume(run, settings=MORE)
    settings = resolve(MODEL, settings=RUN | MORE).train
    for row in rows(run / "training.csv")[4:]:
        assert row["lr"] == pytest.approx(learning_rate(settings, int(row["step"]) - 1, 8), rel=1e-5)


def test_stopped_in_its_new_epochs_it_ends_as_one_never_stopped(dataset, tmp_path, monkeypatch):
    for name in ("whole", "run"):
        doublehead.train(dataset, MODEL, tmp_path / name, settings=RUN)
    doublehead.resume(tmp_path / "whole", settings=MORE)
    stop_at(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        doublehead.resume(tmp_path / "run", settings=MORE)
    doublehead.resume(tmp_path / "run")  # it knows its new length
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_stopped_early_gets_its_patience_back(dataset, tmp_path, monkeypatch):
    aps = iter([0.5, 0.4, 0.3, 0.2])
    real = validation.evaluate_detections

    def falling(*arguments):
        found = real(*arguments)
        return replace(found, totals=found.totals | {"AP": next(aps)})

    monkeypatch.setattr(validation, "evaluate_detections", falling)
    settings = RUN | {"train.epochs": 3, "train.patience": 1}
    run = doublehead.train(dataset, MODEL, tmp_path / "run", settings=settings).parent
    assert [row["step"] for row in rows(run / "validation.csv")] == [2, 4]
    stop_at(monkeypatch, 5, power_cut)
    with pytest.raises(RuntimeError):
        doublehead.resume(run, settings={"train.patience": 2})
    doublehead.resume(run)  # nothing was saved since, and the patience is still whole
    assert [row["AP"] for row in rows(run / "validation.csv")] == [0.5, 0.4, 0.3]


def power_cut():
    raise RuntimeError("power cut")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model.roi.sampled": 8}, "model.roi.sampled: cannot change when a run resumes"),
        ({"train.seed": 1}, "train.seed: cannot change"),
        ({"train.epoch": 1}, "train.epoch: cannot change"),
        ({"train.epochs": 1}, "has already reached step 4, epoch 2.0; give a train.epochs"),
        ({"train.epochs": -1}, "`train.epochs`"),
        ({"train.epochs": 4, "train.steps": 8}, "as steps or as epochs"),
    ],
)
def test_what_may_not_change_is_refused_and_changes_nothing(dataset, tmp_path, settings, said):
    run = doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN | {"data.val_split": None}).parent
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(DoubleheadError, match=said):
        doublehead.resume(run, settings=settings)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_length_in_steps_takes_the_place_of_one_in_epochs():
    config = resolve(MODEL, settings=RUN)
    assert changed(config, {"train.steps": 9}).train.steps == 9
    assert changed(config, {"train.steps": 9}).train.epochs is None


def test_the_docs_list_what_may_change():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    _, section = page.split("These settings may change on resume")
    listed = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \|", section, re.MULTILINE)
    assert listed == list(MAY_CHANGE)
