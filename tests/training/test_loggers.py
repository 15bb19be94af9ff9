"""TensorBoard, Weights & Biases and MLflow, each by its own package: what a run sends is read back."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request

import pytest
import yaml
from PIL import Image
from whole_runs import MODEL, SHORT, stop_at

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.training.loggers import tensorboard as tensorboard_logger
from doublehead.training.signals import Interrupted
from small import flags, rows

RUN = SHORT | {"train.steps": 4, "train.evaluate_every": 0.5}
"""One epoch of four steps, with a validation after every second one."""
pytestmark = pytest.mark.usefixtures("no_pictures")


def interrupt(monkeypatch, dataset, run, **options):
    """Train to the third step, of which nothing but rows is left."""
    stop_at(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        doublehead.train(dataset, MODEL, run, settings=RUN, **options)


def assert_scalars(found, run):
    """Whether the scalars, name -> {step: value}, hold what the CSV files do."""
    for name, prefix in (("training.csv", "train"), ("validation.csv", "val")):
        for row in rows(run / name):
            for key, value in row.items():
                if key not in ("step", "epoch") and value == value:
                    assert found[f"{prefix}/{key}"][int(row["step"])] == pytest.approx(value, rel=1e-4), key
    assert all(value > 0 for value in found["machine/images_per_second"].values())
    assert all(0 <= value <= 1 for value in found["machine/waiting"].values())


def test_tensorboards_files_hold_the_run_also_where_it_was_stopped(dataset, tmp_path, monkeypatch, command):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    interrupt(monkeypatch, dataset, run, log=["tensorboard"])
    assert command("resume", run).code == 0
    events = accumulator.EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        assert steps == sorted(set(steps)), name  # none twice
        found[name] = {event.step: event.value for event in events.Scalars(name)}
    assert_scalars(found, run)
    assert [event.step for event in events.Images("predictions")] == [2, 4]
    size = Image.open(run / "predictions.jpg").size
    assert (events.Images("predictions")[0].width, events.Images("predictions")[0].height) == size
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert yaml.safe_load(text.strip("`\n"))["train"]["steps"] == 4
    assert str(run / "best.safetensors") in str(events.Tensors("checkpoint/text_summary")[0].tensor_proto)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Where MLflow keeps runs: its local database, or with DOUBLEHEAD_SERVERS=1 a server, which takes long to start."""
    pytest.importorskip("mlflow")
    home = tmp_path / "store"
    home.mkdir()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "shapes")
    if "DOUBLEHEAD_SERVERS" not in os.environ:
        monkeypatch.chdir(home)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        yield home
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        words, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 120
    while not answers(address):
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < until, "the server does not answer"
        time.sleep(0.2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    yield home
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)


def answers(address):
    try:
        urllib.request.urlopen(f"{address}/health", timeout=1).close()
    except OSError:
        return False
    return True


def test_mlflow_knows_the_run_and_that_it_was_resumed(store, dataset, tmp_path, monkeypatch, command):
    import mlflow

    run = tmp_path / "run"
    interrupt(monkeypatch, dataset, run, log=["mlflow"])
    assert command("resume", run).code == 0
    assert list(store.glob("*.db"))  # SQLite
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("shapes").experiment_id
    (found,) = client.search_runs([experiment])
    assert found.info.run_name == "run"
    assert found.info.status == "FINISHED"
    assert found.data.params["train.steps"] == "4"
    assert found.data.params["model.roi.sampled"] == str(RUN["model.roi.sampled"])
    values = {
        name: {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, name)}
        for name in found.data.metrics
    }
    assert_scalars(values, run)
    files = {entry.path for entry in client.list_artifacts(found.info.run_id)}
    assert {"config.yaml", "best.safetensors", "pictures"} <= files
    assert {entry.path for entry in client.list_artifacts(found.info.run_id, "pictures")} == {
        "pictures/step-2",
        "pictures/step-4",
    }
    copy = client.download_artifacts(found.info.run_id, "best.safetensors", str(tmp_path))
    with open(copy, "rb") as file:
        assert file.read() == (run / "best.safetensors").read_bytes()


def records(path):
    """The records of a `.wandb` file: LevelDB's log format behind a header of seven bytes, each a protobuf message."""
    from wandb.proto import wandb_internal_pb2 as messages

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:  # a header is never split
            place += room
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        if kind == 0:
            break
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            record = messages.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_an_offline_run_of_weights_and_biases_holds_the_run(dataset, tmp_path, monkeypatch, command):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    run = tmp_path / "run"
    interrupt(monkeypatch, dataset, run, log=["wandb"])
    assert command("resume", run).code == 0
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(files) == 2
    whole = [record for file in files for record in records(file)]
    assert {record.run.run_id for record in whole if record.HasField("run")} == {(run / "wandb.id").read_text().strip()}
    values, pictures = {}, set()
    for record in whole:
        if not record.HasField("history"):
            continue
        items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in items.items():
            if isinstance(value, int | float):
                values.setdefault(name, {})[items["step"]] = value
        if any(name.startswith("predictions") for name in items):
            pictures.add(items["step"])
    assert_scalars(values, run)
    assert pictures == {2, 4}
    artifacts = [record.request.log_artifact.artifact for record in whole if record.HasField("request")]
    artifacts += [record.artifact for record in whole if record.HasField("artifact")]
    assert any(entry.path == "best.safetensors" for artifact in artifacts for entry in artifact.manifest.contents)
    config = next(record.run.config for record in whole if record.HasField("run"))
    (train,) = [json.loads(item.value_json) for item in config.update if item.key == "train"]
    assert train["steps"] == 4


@pytest.mark.parametrize("event", ["begin", "losses", "machine", "metrics", "picture", "end"])
def test_a_logger_that_fails_is_told_of_once_and_stops_nothing(dataset, tmp_path, monkeypatch, command, event):
    pytest.importorskip("tensorboard")

    def fail(self, *arguments):
        if hasattr(self, "writer"):
            self.writer.close()  # or its thread would outlive the test's folder
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tensorboard_logger.TensorBoard, event, fail)
    words = ("--model", MODEL, "-o", tmp_path / "run", "--log", "tensorboard")
    outcome = command("train", dataset, *words, *flags(RUN | {"train.steps": 2}))
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("recorder tensorboard failed (ConnectionError: no route to host)") == 1
    assert len(rows(tmp_path / "run" / "training.csv")) == 2


def test_a_logger_that_is_not_installed_is_named_with_its_extra(dataset, tmp_path, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    words = ("--model", MODEL, "-o", tmp_path / "run", "--log", "mlflow", *flags(RUN | {"train.steps": 1}))
    outcome = command("train", dataset, *words)
    assert outcome.code == 0
    assert outcome.err.count("pip install 'doublehead[mlflow]'") == 1


def test_loggers_are_added_on_resume_and_unknown_ones_refused(dataset, tmp_path, monkeypatch, command):
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    interrupt(monkeypatch, dataset, run)
    assert "unknown recorder `clearml`" in command("resume", run, "--log", "clearml").sentence
    assert command("resume", run, "--log", "tensorboard").code == 0
    assert list((run / "tensorboard").iterdir())
    with pytest.raises(DoubleheadError, match="unknown recorder"):
        doublehead.train(dataset, MODEL, tmp_path / "other", settings=RUN, log=["clearml"])
