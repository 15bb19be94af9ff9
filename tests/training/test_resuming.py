"""A run that was stopped and resumed ends exactly as one that never was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import doublehead
from doublehead.model.checkpoint import load_checkpoint
from doublehead.training import loop
from small import SMALL, config_of, flags, rows

ADAMW = SMALL | {"train.steps": 18, "train.evaluate_every": 2, "train.ema": 0.9, "train.clip_norm": 5.0}
SGD = SMALL | {
    "train.steps": 18,
    "train.evaluate_every": 2,
    "train.optimizer": "sgd",
    "train.schedule": "steps",
    "train.lr": 0.005,
    "train.accumulate": 2,
    "train.precision": "bf16",
    "model.head_norm": "batch",
    "data.augment.iou_crop": 0.5,
}
MODEL = "double-head-tiny"


@pytest.fixture(scope="module")
def never_stopped(dataset, tmp_path_factory):
    """Runs by their settings, made once."""
    runs = {}

    def run(settings):
        key = str(settings)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("whole") / "run"
            doublehead.train(dataset, MODEL, runs[key], settings=settings)
        return runs[key]

    return run


def assert_same_run(run, whole):
    one, other = load_checkpoint(run / "last.safetensors"), load_checkpoint(whole / "last.safetensors")
    for part in ("weights", "training"):
        tensors, expected = getattr(one, part), getattr(other, part)
        assert tensors.keys() == expected.keys()
        assert [key for key in expected if not tensors[key].equal(expected[key])] == []
    assert one.notes | {"seconds": 0} == other.notes | {"seconds": 0}
    for name in ("training.csv", "validation.csv"):
        assert (run / name).read_text() == (whole / name).read_text()
    best, expected = load_checkpoint(run / "best.safetensors"), load_checkpoint(whole / "best.safetensors")
    assert best.notes == expected.notes
    assert all(best.weights[key].equal(expected.weights[key]) for key in expected.weights)


def stop_at(monkeypatch, step, what):
    """Do `what` in place of going on, once the row of that step is written."""
    append = loop.append_row

    def appended(path, row):
        append(path, row)
        if row["step"] == step and path.name == "training.csv":
            monkeypatch.setattr(loop, "append_row", append)
            what()

    monkeypatch.setattr(loop, "append_row", appended)


@pytest.mark.parametrize(("settings", "number"), [(ADAMW, signal.SIGINT), (SGD, signal.SIGTERM)], ids=["adamw", "sgd"])
def test_a_stopped_command_says_how_to_go_on_and_does(dataset, tmp_path, command, never_stopped, settings, number):
    run = tmp_path / "my run"
    words = ["train", str(dataset), "--model", MODEL, "-o", str(run), *flags(settings | {"data.workers": 1})]
    process = subprocess.Popen(
        [sys.executable, "-m", "doublehead.cli", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and (not (run / "training.csv").exists() or len(rows(run / "training.csv")) < 3):
        time.sleep(0.005)
    os.killpg(process.pid, number)  # as a terminal does: the workers hear it too
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("stopped at step ")
    assert last.endswith(f"go on with: doublehead resume '{run}'")
    assert load_checkpoint(run / "last.safetensors").notes["step"] < 18
    assert command("resume", run).code == 0
    assert_same_run(run, never_stopped(settings))


@pytest.mark.parametrize("settings", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("step", [3, 8], ids=["in mid-epoch", "where a measurement is due"])
def test_stopped_anywhere_it_resumes(dataset, tmp_path, monkeypatch, never_stopped, settings, step):
    whole = never_stopped(settings)
    stop_at(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(loop.Interrupted):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=settings)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").notes["step"] == step
    doublehead.resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_stopped_while_measuring_it_measures_again(dataset, tmp_path, monkeypatch, never_stopped):
    whole = never_stopped(ADAMW)
    measure = loop.predict_split

    def measured(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return measure(*arguments)

    monkeypatch.setattr(loop, "predict_split", measured)
    with pytest.raises(loop.Interrupted):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=ADAMW)
    monkeypatch.setattr(loop, "predict_split", measure)
    doublehead.resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_after_a_crash_it_goes_on_from_what_was_saved(dataset, tmp_path, monkeypatch, never_stopped):
    whole = never_stopped(ADAMW)

    def crash():
        raise RuntimeError("power cut")

    stop_at(monkeypatch, 11, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=ADAMW)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").notes["step"] == 8  # and rows 9 to 11 are written
    doublehead.resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_second_ctrl_c_leaves_the_last_checkpoint_whole(dataset, tmp_path, monkeypatch):
    """It stops in the middle of a step, whose half-made weights must not be saved."""
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    update = loop._Training._step

    def stepped(self, learner, step, batches):
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, learner, step, batches)

    monkeypatch.setattr(loop._Training, "_step", stepped)
    with pytest.raises(KeyboardInterrupt):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=ADAMW | {"train.save_minutes": 1e6})
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").notes["step"] == 8


def test_a_finished_run_resumes_to_its_own_end(tmp_path, never_stopped):
    whole = never_stopped(ADAMW)
    run = shutil.copytree(whole, tmp_path / "run")
    doublehead.resume(run)
    assert_same_run(run, whole)


def test_a_run_resumes_from_another_folder(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    stop_at(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(loop.Interrupted):
        doublehead.train(dataset.name, MODEL, tmp_path / "run", settings=SMALL | {"train.steps": 3})
    monkeypatch.chdir(tmp_path)
    doublehead.resume("run")
    assert [row["step"] for row in rows(tmp_path / "run" / "training.csv")] == [1, 2, 3]


def test_the_config_of_a_run_gives_the_same_run(tmp_path, command, never_stopped):
    whole = never_stopped(ADAMW)
    assert command("train", "--config", whole / "config.yaml", "-o", tmp_path / "run").code == 0
    assert config_of(tmp_path / "run") == config_of(whole)
    assert_same_run(tmp_path / "run", whole)
