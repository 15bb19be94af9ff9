"""What happens to machines: each ends the run in one sentence, and the run goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from PIL import Image
from whole_runs import MODEL, SHORT, assert_same_run, assert_same_weights, stop_at

import doublehead
from doublehead.common.errors import Fault
from doublehead.data import loader
from doublehead.data.loader import DetectionDataset
from doublehead.model.checkpoint import load_checkpoint
from doublehead.model.detector import Detector
from small import SMALL, flags, rows


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A run to which nothing happened."""
    run = tmp_path_factory.mktemp("whole") / "run"
    doublehead.train(dataset, MODEL, run, settings=SHORT)
    return run


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 MB for the run alone."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", place], capture_output=True).returncode:
        pytest.skip("nobody may mount a disk here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def train(command, dataset, run, settings=SHORT):
    return command("train", dataset, "--model", MODEL, "-o", run, *flags(settings))


def assert_kept(command, outcome, run, whole, words):
    assert words in outcome.sentence
    assert outcome.sentence.endswith(f"then resume with: doublehead resume {run}")
    assert command("resume", run).code == 0
    assert_same_run(run, whole)


def test_a_full_disk(dataset, small_disk, monkeypatch, command, whole):
    def fill():
        (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))

    stop_at(monkeypatch, 5, fill)
    outcome = train(command, dataset, small_disk / "run")
    assert load_checkpoint(small_disk / "run" / "last.safetensors").notes["step"] == 4
    (small_disk / "filler").unlink()
    assert_kept(command, outcome, small_disk / "run", whole, "No space left on device")


def test_a_disk_that_may_no_longer_be_written(dataset, small_disk, monkeypatch, command, whole):
    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", small_disk], check=True)

    stop_at(monkeypatch, 5, lambda: remount("ro"))
    outcome = train(command, dataset, small_disk / "run")
    remount("rw")
    assert_kept(command, outcome, small_disk / "run", whole, "cannot be written (Read-only file system)")


def test_files_that_may_not_grow(dataset, tmp_path, monkeypatch, command, whole):
    """As where a quota is used up: it is met while a checkpoint is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    stop_at(monkeypatch, 5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1])))
    try:
        outcome = train(command, dataset, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "run").glob(".*")] == []
    assert "File too large" in outcome.sentence
    assert_kept(command, outcome, tmp_path / "run", whole, ".safetensors: cannot be written (")


def cpu_memory(self, images, targets):
    return {"loss": torch.empty(1 << 50)}


def gpu_memory(self, images, targets):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...\nand much more")


def host_memory(self, images, targets):
    raise MemoryError


@pytest.mark.parametrize("exhaust", [cpu_memory, gpu_memory, host_memory])
def test_out_of_memory(dataset, tmp_path, monkeypatch, command, exhaust):
    settings = SHORT | {"train.batch_size": 6, "train.steps": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "losses", exhaust)
        sentence = train(command, dataset, tmp_path / "run", settings).sentence
    assert sentence.startswith("out of memory (")
    cure = "set train.accumulate to 2 in the run's config.yaml, for 3 images at a time instead of 6, or start a new run"
    assert f"{cure} with train.batch_size=3; then resume with: doublehead resume {tmp_path / 'run'}" in sentence
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["train"]["accumulate"] = 2
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert command("resume", tmp_path / "run").code == 0


def test_out_of_memory_with_one_image(dataset, tmp_path, monkeypatch, command):
    monkeypatch.setattr(Detector, "losses", gpu_memory)
    sentence = train(command, dataset, tmp_path / "run", SHORT | {"train.batch_size": 1}).sentence
    assert "start a new run with a smaller model.input.short_side" in sentence


def test_out_of_memory_while_measuring(dataset, trained, monkeypatch, command):
    monkeypatch.setattr(Detector, "detect", lambda self, images, *options: gpu_memory(self, images, None))
    sentence = command("evaluate", trained / "best.safetensors", dataset, "--device", "cpu", "--batch-size", 8).sentence
    assert sentence.endswith("try a batch size of 4")


SICK_LOADER = """
import os, signal, time
from doublehead.cli import main
from doublehead.data.loader import DetectionDataset

get, here = DetectionDataset.__getitem__, os.getpid()

def sick(self, key):
    if key[0] == 1 and os.getpid() != here:  # in the second epoch
        if {crashes}:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    return get(self, key)

DetectionDataset.__getitem__ = sick
main()
"""


@pytest.mark.parametrize("how", ["crashes", "hangs"])
def test_a_loader_process_that(dataset, tmp_path, command, whole, how):
    """The settings differ in the loader alone, which has no part in the result.

    In a process of its own: as long as a dead worker is remembered, torch raises at the end of any child process.
    """
    settings = SHORT | {"data.workers": 1, "data.timeout": 5 if how == "hangs" else 300}
    script = SICK_LOADER.format(crashes=how == "crashes")
    words = ["train", dataset, "--model", MODEL, "-o", tmp_path / "run", *flags(settings)]
    done = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True)
    sentences = {
        "crashes": "a process that loads images ended (DataLoader worker (pid",
        "hangs": "loading one batch took more than 5 seconds: see whether the disk",
    }
    assert done.returncode == 2, done.stderr
    assert f"error: {sentences[how]}" in done.stderr
    assert "Traceback" not in done.stderr
    assert command("resume", tmp_path / "run").code == 0
    assert_same_run(tmp_path / "run", whole)


def test_an_image_that_hangs_ends_a_measurement(dataset, trained, monkeypatch):
    monkeypatch.setattr(loader, "read_record", lambda record: time.sleep(600))
    split = doublehead.data.dataset.open_dataset(dataset).read("val")
    with pytest.raises(Fault, match="loading one batch took more than 1 seconds"):
        list(loader.evaluation_loader(split, 2, 1, timeout=1))


@pytest.fixture
def sick_at(monkeypatch):
    """Make one part of the loss NaN in some forward passes; gives the indices of the images seen by each."""

    def make(*passes, everything=False):
        losses, seen, get = Detector.losses, [], DetectionDataset.__getitem__

        def sick(self, images, targets):
            seen.append(None)
            if len(seen) - 1 in passes and everything:  # as from images that the network cannot stand
                for module in self.modules():
                    if isinstance(module, torch.nn.BatchNorm2d):
                        module.running_mean.fill_(float("nan"))
            result = losses(self, images, targets)
            return result | {"fc_classify": result["fc_classify"] * float("nan")} if len(seen) - 1 in passes else result

        keys = []
        monkeypatch.setattr(Detector, "losses", sick)
        monkeypatch.setattr(DetectionDataset, "__getitem__", lambda self, key: (keys.append(key[1]), get(self, key))[1])
        return keys

    return make


def test_a_loss_that_is_not_finite_names_the_images_and_keeps_them(dataset, tmp_path, command, sick_at):
    keys = sick_at(2)
    outcome = train(command, dataset, tmp_path / "run", SMALL)
    files = sorted((dataset / "train").iterdir())
    folder = tmp_path / "run" / "not-finite" / "step-2"
    assert "the loss (fc_classify) is not finite at step 2" in outcome.sentence
    assert outcome.sentence.endswith(f"check the boxes of these images in {folder}")
    expected = [str(files[i]) for i in keys[4:6]]
    assert {str(file) for file in files if str(file) in outcome.sentence} == set(expected)
    kept = json.loads((folder / "rank0.json").read_text())
    assert [image["file"] for image in kept["images"]] == expected
    assert kept["losses"]["fc_classify"] != kept["losses"]["fc_classify"]
    for image in kept["images"]:
        assert Image.open(folder / image["picture"]).size == (96, 64)
        assert len(image["boxes"]) == len(image["labels"]) > 0
    assert {path.name for path in folder.glob("*-boxes.png")} == {"rank0-0-boxes.png", "rank0-1-boxes.png"}


def test_steps_without_a_finite_loss_are_left_out_up_to_a_limit(dataset, tmp_path, command, sick_at):
    sick_at(3, 9, everything=True)  # of steps of two passes each: the second part of step 1, then of step 4
    settings = SHORT | {"train.accumulate": 2, "train.skip_not_finite": 2}
    settings |= {"model.backbone.norm": "batch", "model.head_norm": "batch"}
    outcome = train(command, dataset, tmp_path / "run", settings)
    assert outcome.code == 0
    assert outcome.err.count("skipped: the loss (fc_classify) is not finite at step") == 2
    assert [row["step"] for row in rows(tmp_path / "run" / "training.csv")] == [1, 3, 4, 6, 7, 8]
    checkpoint = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert checkpoint.notes["skipped"] == 2
    assert all(tensor.isfinite().all() for tensor in checkpoint.weights.values())


def test_a_step_too_many_without_a_finite_loss_ends_the_run(dataset, tmp_path, command, sick_at):
    sick_at(1, 3)
    outcome = train(command, dataset, tmp_path / "run", SHORT | {"train.skip_not_finite": 1})
    assert "is not finite at step 3" in outcome.sentence
    assert {path.name for path in (tmp_path / "run" / "not-finite").iterdir()} == {"step-1", "step-3"}


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(dataset, tmp_path, command, monkeypatch):
    losses, seen = Detector.losses, []

    def sick(self, images, targets):
        seen.append(None)
        result = losses(self, images, targets)
        parameter = next(self.parameters())
        steep = (parameter - parameter.detach()).abs().sqrt().sum()  # 0, with an infinite slope
        return result | {"fc_classify": result["fc_classify"] + steep} if len(seen) == 6 else result

    monkeypatch.setattr(Detector, "losses", sick)
    outcome = train(command, dataset, tmp_path / "run")
    assert "the gradient is not finite at step 5" in outcome.sentence
    weights = load_checkpoint(tmp_path / "run" / "last.safetensors").weights
    assert all(tensor.isfinite().all() for tensor in weights.values())


def sick_gradients(monkeypatch, sick):
    """Make the gradient infinite in the steps of which `sick` says so, the loss staying finite."""
    losses, seen = Detector.losses, []

    def wrapped(self, images, targets):
        seen.append(None)
        result = losses(self, images, targets)
        parameter = next(p for p in self.parameters() if p.requires_grad)
        steep = (parameter - parameter.detach()).abs().sqrt().sum()  # 0, with an infinite slope
        return result | {"fc_classify": result["fc_classify"] + steep} if sick(len(seen) - 1) else result

    monkeypatch.setattr(Detector, "losses", wrapped)


FP16 = SHORT | {"train.precision": "fp16", "data.val_split": None, "train.ema": None}


def test_gradients_that_are_never_finite_end_an_fp16_run(dataset, tmp_path, command, monkeypatch):
    sick_gradients(monkeypatch, lambda step: True)
    outcome = train(command, dataset, tmp_path / "run", FP16 | {"train.steps": 6})
    assert "the gradient is not finite at step 5" in outcome.sentence
    assert (tmp_path / "run" / "not-finite" / "step-5" / "rank0.json").is_file()


def test_an_fp16_run_finds_its_scale_and_skips_those_steps(dataset, tmp_path, command, monkeypatch):
    sick_gradients(monkeypatch, lambda step: step in (0, 1, 5))
    assert train(command, dataset, tmp_path / "run", FP16).code == 0
    checkpoint = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert checkpoint.notes["scaler"]["scale"] == 65536 / 8
    assert (checkpoint.notes["skipped"], checkpoint.notes["halvings"]) == (0, 0)


def test_once_unscaled_every_fp16_gradient_counts(dataset, tmp_path, command, monkeypatch):
    """Every second one is not finite: never more than one in a row."""
    sick_gradients(monkeypatch, lambda step: step % 2 == 0)
    outcome = train(command, dataset, tmp_path / "run", FP16 | {"train.steps": 40})
    assert "the gradient is not finite at step 32" in outcome.sentence  # after 16 halvings


def test_a_learning_rate_beyond_reason_ends_in_a_sentence(dataset, tmp_path, command):
    settings = SMALL | {"train.lr": 1e30, "train.clip_norm": None}
    outcome = train(command, dataset, tmp_path / "run", settings)
    assert "is not finite at step" in outcome.sentence
    assert "lower train.lr" in outcome.sentence


def test_a_job_started_again_goes_on_with_its_own_run_alone(dataset, tmp_path, monkeypatch, command, whole):
    """As torchrun and SLURM start it: with the same words."""
    stop_at(monkeypatch, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(command, dataset, tmp_path / "run").code == 130
    assert "already holds a run" in train(command, dataset, tmp_path / "run").sentence
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "holds a run with other settings" in train(command, dataset, tmp_path / "run", SMALL).sentence
    assert train(command, dataset, tmp_path / "run").code == 0
    assert_same_run(tmp_path / "run", whole)
    assert train(command, dataset, tmp_path / "new").code == 0
    assert_same_weights(tmp_path / "new", whole)
    shutil.rmtree(tmp_path / "new")
