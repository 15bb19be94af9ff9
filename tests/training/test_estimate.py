"""The estimate before a run: its sums, and that a run with it is the run without it."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace

import pytest
from whole_runs import MODEL, SHORT, assert_same_run, stop_at

import doublehead
from doublehead.training import estimate
from doublehead.training.estimate import Estimate
from doublehead.training.signals import Interrupted

pytestmark = pytest.mark.usefixtures("no_pictures")
BATCH_NORM = SHORT | {"model.backbone.norm": "batch", "model.head_norm": "batch", "train.steps": 6}
FOUND = Estimate(
    steps=100, forward=1.0, backward=2.0, loading=0.8, workers=1, measured=40, images=4, memory=3e9, available=None
)


@pytest.mark.parametrize("augment", [[], [{"mosaic": 1}, {"flip": 0.5}]], ids=["plain", "mosaic"])
def test_a_run_with_an_estimate_stopped_and_resumed_equals_one_without(dataset, tmp_path, monkeypatch, capsys, augment):
    settings = {key: value for key, value in BATCH_NORM.items() if key != "data.augment.colour"}
    settings["data.augment"] = augment
    doublehead.train(dataset, MODEL, tmp_path / "whole", settings=settings)
    assert "estimate: about" not in capsys.readouterr().err  # six steps
    monkeypatch.setattr(estimate, "LEAST", 1)
    stop_at(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=settings)
    doublehead.resume(tmp_path / "run")
    assert len(re.findall("^estimate: about", capsys.readouterr().err, re.M)) == 2
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_loading_beside_the_step_costs_nothing_and_before_it_all():
    assert (FOUND.waiting, FOUND.training) == (0, 300)
    assert replace(FOUND, workers=0).training == pytest.approx(380)
    assert replace(FOUND, loading=8.0).waiting == pytest.approx(5)
    assert replace(FOUND, loading=8.0, workers=4).waiting == 0


def test_validations_count():
    assert FOUND.validation == pytest.approx(40 / 4 * 1.0)
    assert replace(FOUND, workers=0).validation == pytest.approx(40 / 4 * 1.8)


def test_slow_images_are_said_with_the_setting():
    assert not any("data.workers" in line for line in FOUND.lines())
    assert any("data.workers" in line for line in replace(FOUND, loading=8.0).lines())
