"""A run that was stopped and resumed ends exactly as one that never was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from whole_runs import MODEL, SHORT, assert_same_run, stop_at

import doublehead
from doublehead.common.categories import Categories
from doublehead.data.dataset import open_dataset
from doublehead.model.checkpoint import load_checkpoint
from doublehead.model.detector import Detector
from doublehead.training import loop, validation
from doublehead.training.recipes import resolve
from doublehead.training.signals import Interrupted
from doublehead.training.state import TrainingState
from doublehead.training.step import Stepper
from small import SMALL, config_of, flags, rows

ADAMW = SMALL | {
    "train.steps": 18,
    "train.evaluate_every": 2,
    "train.ema": 0.9,
    "train.clip_norm": 5.0,
}
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
    assert last.endswith(f"resume with: doublehead resume '{run}'")
    assert load_checkpoint(run / "last.safetensors").notes["step"] < 18
    assert command("resume", run).code == 0
    assert_same_run(run, never_stopped(settings))


def test_another_process_cannot_train_into_the_folder_meanwhile(dataset, tmp_path, monkeypatch, never_stopped):
    said = []

    def resume():
        words = [sys.executable, "-m", "doublehead.cli", "resume", str(tmp_path / "run")]
        said.append(subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False))

    stop_at(monkeypatch, 3, resume)
    doublehead.train(dataset, MODEL, tmp_path / "run", settings=ADAMW)
    assert said[0].returncode == 2
    assert said[0].stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'run'}: ")
    assert_same_run(tmp_path / "run", never_stopped(ADAMW))


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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_momenta_come_back_as_their_parameters_lie_in_memory(tmp_path, optimizer):
    config = resolve(MODEL, settings=SHORT | {"train.optimizer": optimizer})

    def state():
        model = Detector(config.model, classes=3).to(memory_format=torch.channels_last)
        return TrainingState.create(model, config.train, torch.device("cpu"), fp16=False)

    def layouts(state):
        momenta = state.optimizer.state_dict()["state"]
        return {
            (index, name): value.is_contiguous(memory_format=torch.channels_last)
            for index, values in momenta.items()
            for name, value in values.items()
            if value.ndim == 4
        }

    before, after = state(), state()
    for parameter in before.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before.optimizer.step()
    before.save(tmp_path / "last.safetensors", config, Categories(("a", "b", "c"), (1, 2, 3)))
    after.restore(load_checkpoint(tmp_path / "last.safetensors"), tmp_path / "last.safetensors")
    assert layouts(before) == layouts(after)
    assert all(layouts(after).values())


def test_stopped_with_mosaics_and_pasted_objects_it_resumes_and_closes_them(dataset, tmp_path, monkeypatch, command):
    """Stopped before the last tenth of the run, whose images are no mosaics."""
    steps = [{"mosaic": 1}, {"copy_paste": 1}, {"mixup": 0.5}, {"affine": 0.5}, {"erasing": 0.5}, {"flip": 0.5}]
    settings = SHORT | {"train.steps": 20, "train.evaluate_every": 10, "data.augment": steps}
    settings.pop("data.augment.colour")
    whole = tmp_path / "whole"
    doublehead.train(dataset, MODEL, whole, settings=settings)
    run = stopped(dataset, tmp_path / "run", monkeypatch, 17, settings | {"data.workers": 1})
    assert command("resume", run).code == 0
    assert_same_run(run, whole)


def test_stopped_while_measuring_it_measures_again(dataset, tmp_path, monkeypatch, never_stopped):
    whole = never_stopped(ADAMW)
    measure = validation.predict_split

    def measured(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return measure(*arguments)

    monkeypatch.setattr(validation, "predict_split", measured)
    with pytest.raises(loop.Interrupted):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=ADAMW)
    monkeypatch.setattr(validation, "predict_split", measure)
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
    take = Stepper.take

    def taken(self, learner, step, *others):
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, learner, step, *others)

    monkeypatch.setattr(Stepper, "take", taken)
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


def stopped(dataset, run, monkeypatch, step, settings=SHORT):
    stop_at(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(loop.Interrupted):
        doublehead.train(dataset, MODEL, run, settings=settings)
    return run


def noise(path):
    """Turn a few bits in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0b1010
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (noise, "last.safetensors: is damaged (its checksum differs)"),
        (
            lambda last: last.write_bytes(last.read_bytes()[:-1]),
            "last.safetensors: is damaged or not a safetensors file",
        ),
        (lambda last: last.write_bytes(b""), "last.safetensors: is damaged or not a safetensors file"),
        (lambda last: last.unlink(), "last.safetensors: is missing"),
    ],
)
def test_without_a_whole_last_checkpoint_it_goes_on_from_the_one_before(
    dataset, tmp_path, monkeypatch, command, never_stopped, spoil, said
):
    run = stopped(dataset, tmp_path / "run", monkeypatch, 6)
    spoil(run / "last.safetensors")
    outcome = command("resume", run)
    assert outcome.code == 0
    assert said in outcome.err
    assert "resuming from the previous checkpoint, previous.safetensors of step 4" in outcome.err
    assert_same_run(run, never_stopped(SHORT))


def test_without_any_whole_checkpoint_the_run_says_so(dataset, tmp_path, monkeypatch, command):
    run = stopped(dataset, tmp_path / "run", monkeypatch, 6)
    for name in ("last", "previous"):
        noise(run / f"{name}.safetensors")
    sentence = command("resume", run).sentence
    assert sentence.startswith(f"{run / 'last.safetensors'}: is damaged")
    assert "there is no other checkpoint to resume from: train again" in sentence


def test_stopped_before_anything_was_saved_it_begins_anew(dataset, tmp_path, monkeypatch, command, never_stopped):
    def crash():
        raise RuntimeError("power cut")

    stop_at(monkeypatch, 2, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        doublehead.train(dataset, MODEL, tmp_path / "run", settings=SHORT)
    outcome = command("resume", tmp_path / "run")
    assert "nothing was saved yet; starting from the beginning" in outcome.err
    assert_same_run(tmp_path / "run", never_stopped(SHORT))


def test_what_a_kill_leaves_half_written_is_written_again(dataset, tmp_path, monkeypatch, command, never_stopped):
    """A last line cut short, whose step then looks like an earlier one; and files under their temporary names."""
    run = stopped(dataset, tmp_path / "run", monkeypatch, 6)
    (run / ".writing").mkdir()
    (run / ".writing" / "last.safetensors").write_bytes(b"half")
    (run / ".writing" / ".tmp123").write_bytes(b"ha")
    for name in ("training.csv", "validation.csv"):
        with (run / name).open("a") as file:
            file.write("1")
    assert command("resume", run).code == 0
    assert_same_run(run, never_stopped(SHORT))


def test_another_number_of_loader_processes_gives_the_same_run(dataset, tmp_path, never_stopped):
    doublehead.train(dataset, MODEL, tmp_path / "run", settings=SHORT | {"data.workers": 2})
    assert_same_run(tmp_path / "run", never_stopped(SHORT))


def test_a_run_records_what_it_was_made_with(own_dataset, tmp_path, monkeypatch, command):
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c", "--allow-empty"]):
        subprocess.run(["git", *words], check=True)
    command("train", own_dataset, "--model", MODEL, "-o", tmp_path / "run", *flags(SHORT | {"train.steps": 2}))
    monkeypatch.chdir(tmp_path)
    moved = own_dataset.rename(tmp_path / "moved")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(own_dataset), str(moved)))
    assert command("resume", tmp_path / "run").code == 0
    first, second = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert first["versions"]["torch"] == torch.__version__
    assert first["command"].startswith("doublehead train ")
    assert len(first["git"]["commit"]) == 40
    assert (first["from_step"], second["from_step"]) == (0, 2)
    assert second["git"] is None
    assert first["data"] == second["data"]  # also in its new place
    assert {len(value) for value in first["data"].values()} == {64}


@pytest.mark.parametrize("change", ["a box", "a file", "a class"])
def test_other_data_is_refused_unless_asked_for(own_dataset, tmp_path, monkeypatch, command, change):
    run = stopped(own_dataset, tmp_path / "run", monkeypatch, 2)
    annotations = own_dataset / "annotations" / "instances_train.json"
    content = json.loads(annotations.read_text())
    if change == "a box":
        content["annotations"][0]["bbox"][0] += 1
    elif change == "a file":
        (own_dataset / "train" / content["images"][0]["file_name"]).rename(own_dataset / "train" / "other.jpg")
        content["images"][0]["file_name"] = "other.jpg"
    else:
        content["categories"][0]["name"] = "other"
        val = own_dataset / "annotations" / "instances_val.json"
        val.write_text(val.read_text().replace(json.loads(val.read_text())["categories"][0]["name"], "other"))
    annotations.write_text(json.dumps(content))
    sentence = command("resume", run).sentence
    assert sentence.startswith(f"{run}: its {'train and val' if change == 'a class' else 'train'} data has changed")
    assert sentence.endswith(f"resume with `doublehead resume {run} --other-data`")
    outcome = command("resume", run, "--other-data")
    if change == "a class":
        assert "different classes" in outcome.sentence
    else:
        assert outcome.code == 0
        assert command("resume", run).code == 0  # the new data is the run's from now on


def objects(dataset):
    """The splits as lists of (image, target), and the class names."""
    found = open_dataset(dataset)
    splits = {name: found.read(name) for name in ("train", "val")}
    items = {
        name: [(str(each.path), {"boxes": each.boxes, "labels": each.labels - 1}) for each in split.records]
        for name, split in splits.items()
    }
    return items, list(splits["train"].categories.names)


def test_a_run_on_python_objects_resumes_with_equal_objects(dataset, tmp_path, monkeypatch, capsys):
    data, classes = objects(dataset)
    whole = doublehead.train(data, MODEL, tmp_path / "whole", settings=SHORT, classes=classes).parent
    stop_at(monkeypatch, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        doublehead.train(data, MODEL, tmp_path / "run", settings=SHORT, classes=classes)
    assert "doublehead.resume(" in capsys.readouterr().err.splitlines()[-1]
    doublehead.resume(tmp_path / "run", data=objects(dataset)[0], classes=classes)
    assert_same_run(tmp_path / "run", whole)
