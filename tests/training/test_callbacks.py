"""A user's own code in a run: called in order, it may change the model and stop the run; its errors name it."""

from __future__ import annotations

import json
import os
import runpy
import signal
from pathlib import Path

import pytest
from whole_runs import MODEL, SHORT, assert_same_run, stop_at

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.model.checkpoint import load_checkpoint
from doublehead.training.signals import Interrupted
from small import rows

pytestmark = pytest.mark.usefixtures("no_pictures")
RUN = SHORT | {"train.steps": 6, "train.evaluate_every": 0.5}
"""One and a half epochs of four steps, with a validation after every second step."""
FreezeBackbone = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "freeze_backbone.py"))["FreezeBackbone"]


class Diary(doublehead.Callback):
    def __init__(self):
        self.told = []

    def begin(self, run):
        self.told.append(("begin", run.step, run.total, run.folder))

    def step(self, run, losses):
        self.told.append(("step", run.step, run.epoch, losses["loss"]))

    def validation(self, run, figures):
        self.told.append(("validation", run.step, figures["AP"], figures["loss"]))

    def end(self, run, done):
        self.told.append(("end", run.step, done))


def test_a_callback_follows_a_run(dataset, tmp_path):
    diary, run = Diary(), tmp_path / "run"
    doublehead.train(dataset, MODEL, run, settings=RUN, callbacks=[diary])
    assert diary.told[0] == ("begin", 0, 6, run)
    assert diary.told[-1] == ("end", 6, True)
    kinds = [event[0] for event in diary.told]
    assert kinds == ["begin", *["step", "step", "validation"] * 3, "end"]
    steps = [event[1:] for event in diary.told if event[0] == "step"]
    assert steps == [
        pytest.approx((row["step"], row["epoch"], row["loss"]), rel=1e-5) for row in rows(run / "training.csv")
    ]
    measured = [event[1:] for event in diary.told if event[0] == "validation"]
    assert measured == [
        pytest.approx((row["step"], row["AP"], row["loss"]), rel=1e-5) for row in rows(run / "validation.csv")
    ]


def test_a_callback_needs_only_the_methods_it_uses(dataset, tmp_path):
    class Counts:
        steps = 0

        def step(self, run, losses):
            self.steps += 1

    counts = Counts()
    doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN | {"data.val_split": None}, callbacks=[counts])
    assert counts.steps == 6


@pytest.mark.parametrize("wrong", [object(), print, Diary])
def test_what_is_no_callback_is_refused(dataset, tmp_path, wrong):
    with pytest.raises(DoubleheadError, match=r"^callbacks: .* is not a callback"):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN, callbacks=[wrong])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("event", ["begin", "step", "validation"])
def test_a_callback_may_stop_a_run_which_then_is_whole(dataset, tmp_path, capsys, event):
    class Stops(doublehead.Callback):
        pass

    def stop(self, run, *values):
        if event == "begin" or run.step == 2:
            run.stop("seen enough")

    setattr(Stops, event, stop)
    best = doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN, callbacks=[Stops()])
    at = 0 if event == "begin" else 2
    assert f"stopped early at step {at} of 6: seen enough" in capsys.readouterr().err
    run = best.parent
    assert json.loads((run / "environment.json").read_text())[-1]["ended"] == {"step": at, "why": "seen enough"}
    assert load_checkpoint(best).notes["step"] == at
    assert rows(run / "validation.csv")[-1]["step"] == at
    doublehead.resume(run)  # without the callback
    assert rows(run / "training.csv")[-1]["step"] == 6


def test_a_stop_between_validations_measures_the_last_weights(dataset, tmp_path):
    class Stops(doublehead.Callback):
        def step(self, run, losses):
            if run.step == 3:
                run.stop("seen enough")

    doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN, callbacks=[Stops()])
    assert [row["step"] for row in rows(tmp_path / "run" / "validation.csv")] == [2, 3]


@pytest.mark.parametrize("event", ["begin", "step", "validation", "end"])
def test_an_error_in_a_callback_names_it_and_loses_nothing(dataset, tmp_path, event):
    class Careless(doublehead.Callback):
        pass

    def fail(self, run, *values):
        if event in ("begin", "end") or run.step == 4:
            return {}["epoch"]
        return None

    setattr(Careless, event, fail)
    with pytest.raises(
        DoubleheadError, match=rf"callback Careless failed in `{event}` .*KeyError: 'epoch'.*, line "
    ) as e:
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=RUN, callbacks=[Careless()])
    assert isinstance(e.value.__cause__, KeyError)
    if event in ("step", "validation"):
        assert load_checkpoint(tmp_path / "run" / "last.safetensors").notes["step"] == 4
        doublehead.resume(tmp_path / "run")
        assert [row["step"] for row in rows(tmp_path / "run" / "training.csv")] == [1, 2, 3, 4, 5, 6]


def test_the_example_freezes_the_backbone_for_the_first_epochs(dataset, tmp_path):
    class Watch(doublehead.Callback):
        def begin(self, run):
            self.changed = {}
            self.before = {key: value.clone() for key, value in run.model.named_parameters()}

        def step(self, run, losses):
            now = dict(run.model.named_parameters())
            self.changed[run.step] = {key.split(".")[0] for key in now if not now[key].equal(self.before[key])}

    settings, watch = RUN | {"train.evaluate_every": 10}, Watch()
    doublehead.train(dataset, MODEL, tmp_path / "run", settings=settings, callbacks=[FreezeBackbone(1), watch])
    assert all("backbone" not in watch.changed[step] for step in (1, 2, 3, 4))
    assert all("roi_heads" in parts for parts in watch.changed.values())
    assert all("backbone" in watch.changed[step] for step in (5, 6))


@pytest.mark.parametrize("step", [3, 5], ids=["while frozen", "while it learns"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_with_a_callback_a_stopped_run_ends_as_one_never_stopped(dataset, tmp_path, monkeypatch, step, optimizer):
    settings = RUN | {"train.optimizer": optimizer, "train.lr": 1e-3}
    doublehead.train(dataset, MODEL, tmp_path / "whole", settings=settings, callbacks=[FreezeBackbone(1)])
    stop_at(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=settings, callbacks=[FreezeBackbone(1)])
    doublehead.resume(tmp_path / "run", callbacks=[FreezeBackbone(1)])
    assert_same_run(tmp_path / "run", tmp_path / "whole")
