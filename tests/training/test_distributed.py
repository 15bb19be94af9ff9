"""torchrun with two processes on the CPU: they train one model, and measure it together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import doublehead
from doublehead.model.checkpoint import load_checkpoint
from doublehead.model.detector import Detector
from doublehead.training.recipes import resolve
from small import SMALL, flags, rows, without_boxes

# A run itself writes the first rank's weights alone: here each keeps what it ends with. And one can be made sick.
SCRIPT = """
import os
from safetensors.torch import save_file
from doublehead import cli
from doublehead.model.checkpoint import load_checkpoint
from doublehead.model.detector import Detector
from doublehead.training.loop import _Training

rank = os.environ["RANK"]
run, losses = _Training.run, Detector.losses

def run_and_keep(self):
    best = run(self)
    weights = {key: value.contiguous() for key, value in self.state.for_use.state_dict().items()}
    save_file(weights, os.environ["KEEP"] + f"/rank{rank}.safetensors")
    return best

def sick_losses(self, images, targets):
    return {name: loss * float("nan") for name, loss in losses(self, images, targets).items()}

_Training.run = run_and_keep
if rank == os.environ.get("SICK"):
    Detector.losses = sick_losses
cli.main()
"""


JOINS = """
import os, sys, time
from doublehead.common.distribution import Distribution

print("loaded", flush=True)
time.sleep(float(sys.argv[1]))
print(Distribution.start("cpu", 30).gather([os.environ["RANK"]]), flush=True)
os._exit(1)  # as one that is lost: nobody takes its leave
"""


@pytest.fixture
def torchrun(tmp_path):
    """Start the command line in two processes; the weights that each ends with are kept in the test's folder."""
    started = []

    def start(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
        started.append(launch(tmp_path, words, environment))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def launch(folder: Path, words: tuple[str | Path, ...], environment: dict[str, str]) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}"]
    return subprocess.Popen(
        [sys.executable, *start, str(script), *map(str, words)],
        env=os.environ | {"KEEP": str(folder), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_two_processes_train_one_model_through_a_ctrl_c(own_dataset, tmp_path, torchrun):
    """One image of eight has boxes, so that in every step a rank has no positives for its regress-only branch."""
    without_boxes(own_dataset, "train", keep=1)
    settings = SMALL | {
        "train.steps": 16,
        "train.batch_size": 4,
        "train.accumulate": 2,
        "train.ema": 0.9,
        "train.evaluate_every": 4,
        "model.head_norm": "batch",
        "model.roi.score_threshold": 0.01,
    }
    run = tmp_path / "run"
    first = torchrun("train", own_dataset, "--model", "double-head-tiny", "-o", run, *flags(settings))
    while first.poll() is None and (not (run / "training.csv").exists() or len(rows(run / "training.csv")) < 2):
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does; and torchrun tells its processes a second time
    _, said = first.communicate(timeout=240)
    stopped = load_checkpoint(run / "last.safetensors").notes["step"]
    assert 2 <= stopped < 16
    assert f"stopped at step {stopped} and saved; resume with: torchrun ... -m doublehead.cli resume {run}\n" in said

    second = torchrun("resume", run)
    _, said = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert said.count("training double-head-tiny for 16 steps") == 1  # the second process is silent
    assert said.count("batch norm takes its statistics from the 1 images of one process") == 1
    assert [row["step"] for row in rows(run / "training.csv")] == list(range(1, 17))
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    assert [key for key in ranks[0] if not ranks[0][key].equal(ranks[1][key])] == []
    measured = rows(run / "validation.csv")[-1]
    alone = doublehead.evaluate(run / "last.safetensors", own_dataset, "val", workers=0, device="cpu").metrics
    assert {k: measured[k] for k in alone.totals} == pytest.approx(alone.totals, rel=1e-5, nan_ok=True)  # 6 digits


def test_shared_batch_norm_is_refused_without_cuda(dataset, tmp_path, torchrun):
    settings = SMALL | {"model.head_norm": "batch", "train.sync_batch_norm": True}
    process = torchrun("train", dataset, "--model", "single-fc-tiny", "-o", tmp_path / "run", *flags(settings))
    _, said = process.communicate(timeout=240)
    (error,) = {line for line in said.splitlines() if line.startswith("error: ")}
    assert error.startswith("error: train.sync_batch_norm needs CUDA, and this run is on cpu")


def test_a_loss_gone_wrong_in_one_process_stops_both_with_its_images(dataset, tmp_path, torchrun):
    words = ("--model", "single-fc-tiny", "-o", tmp_path / "run", *flags(SMALL))
    process = torchrun("train", dataset, *words, SICK="1")
    _, said = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "[rank" not in said  # the traceback of a process that waits for one that is gone
    (error,) = {line for line in said.splitlines() if line.startswith("error: ")}
    assert "is not finite at step 0" in error
    assert error.count(".jpg") == 1  # the second process's one image


def test_a_mistake_that_one_process_finds_ends_both_without_a_traceback(own_dataset, tmp_path, torchrun):
    bad = min((own_dataset / "train").iterdir())
    bad.write_bytes(bad.read_bytes()[:-200])
    words = ("--model", "single-fc-tiny", "-o", tmp_path / "run", *flags(SMALL))
    process = torchrun("train", own_dataset, *words)
    _, said = process.communicate(timeout=240)
    assert process.returncode != 0
    (error,) = {line for line in said.splitlines() if line.startswith("error: ")}
    assert str(bad) in error
    assert "[rank" not in said


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.long), 3])
def test_processes_measure_together_exactly_what_one_measures_alone(
    dataset, trained, tmp_path, torchrun, command, batch
):
    """Three images: with one to a batch the shares are uneven, with three the second process has none."""
    words = ("evaluate", trained / "best.safetensors", dataset, "--split", "test", "--device", "cpu")
    words += ("--batch-size", str(batch), "-o")
    process = torchrun(*words, tmp_path / "together")
    out, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert out.count("everything is in") == 1  # the second process is silent
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun does
    assert command(*words, tmp_path / "alone").code == 0
    torch.set_num_threads(threads)
    for name in ("metrics.json", "predictions.json"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert json.loads((tmp_path / "together" / "predictions.json").read_text())


def test_without_an_output_folder_several_processes_are_refused(dataset, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("train", dataset, "--model", "single-fc-tiny").sentence.startswith("give --output: all processes")


def test_processes_that_are_started_again_meet_whichever_comes_first():
    """The store, torchrun's own, still has the addresses of those from before."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    for late in (1, 0, 1):
        started = []
        for rank in (0, 1):
            words = [sys.executable, "-c", JOINS, str(3 * (rank == late))]
            environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": "0"}
            started.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True))
        said = [process.communicate(timeout=120)[0] for process in started]
        assert said == ["loaded\n['0', '1']\n"] * 2


@pytest.mark.parametrize(
    "model", ["double-head-tiny", "double-head-ext-tiny", "double-conv-tiny", "cascade-double-head-tiny"]
)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_without_any_box_every_parameter_still_has_a_gradient(model, norm):
    """DistributedDataParallel waits for every gradient."""
    detector = Detector(resolve(model, settings=SMALL | {"model.head_norm": norm}).model, classes=3).train()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = detector.losses([torch.zeros(3, 64, 96, dtype=torch.uint8)] * 2, [nothing] * 2)
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []
