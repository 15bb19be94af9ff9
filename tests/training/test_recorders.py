"""A recorder of a user's own is one row; one that fails stops nothing; the CSV files are the default."""

from __future__ import annotations

from collections import Counter

import pytest

import doublehead
from doublehead.common.errors import DoubleheadError, Fault
from doublehead.training.recipes import resolve
from doublehead.training.recorders import RECORDERS, RecorderRow
from small import SMALL, rows

RUN = SMALL | {"train.steps": 3, "train.evaluate_every": 0.5, "model.backbone.width": 8}


class Diary:
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def begin(self, config, folder, step, measured):
        self.told.append(("begin", config.train.steps, folder, step, measured))

    def losses(self, step, epoch, values):
        self.told.append(("losses", step, epoch, dict(values)))

    def machine(self, step, values):
        self.told.append(("machine", step, dict(values)))

    def metrics(self, step, epoch, values):
        self.told.append(("metrics", step, epoch, dict(values)))

    def picture(self, step, name, path):
        assert path.is_file()
        self.told.append(("picture", step, name))

    def end(self, done):
        self.told.append(("end", done))


class Broken(Diary):
    def losses(self, step, epoch, values):
        super().losses(step, epoch, values)
        raise ConnectionError("no route to host")


@pytest.fixture
def opened(monkeypatch):
    """Register a recorder in one line; gives those that runs have opened."""
    made = []

    def register(name, kind, **options):
        monkeypatch.setitem(RECORDERS, name, RecorderRow(lambda: made.append(kind()) or made[-1], **options))
        return made

    return register


def test_a_recorder_of_ones_own_follows_a_run(dataset, tmp_path, opened):
    made = opened("diary", Diary)
    settings = RUN | {"train.recorders": ["csv", "diary"]}
    doublehead.train(dataset, "single-fc-tiny", tmp_path / "run", settings=settings)
    (diary,) = made
    assert diary.told[0] == ("begin", 3, tmp_path / "run", 0, -1)
    assert diary.told[-1] == ("end", True)
    counts = Counter(event[0] for event in diary.told)
    assert counts == {"begin": 1, "losses": 3, "machine": 3, "metrics": 2, "picture": counts["picture"], "end": 1}
    assert ("picture", 3, "predictions") in diary.told
    losses = [event for event in diary.told if event[0] == "losses"]
    written = rows(tmp_path / "run" / "training.csv")
    assert [event[1] for event in losses] == [1, 2, 3]
    for (_, step, epoch, values), row in zip(losses, written, strict=True):
        assert {"step": step, "epoch": epoch, **values} == pytest.approx(row, rel=1e-5)
        assert {"lr", "loss", "fc_classify"} <= values.keys()
    (*_, figures) = [event for event in diary.told if event[0] == "metrics"][-1]
    assert {"AP", "AP50"} <= figures.keys()


def test_a_recorder_that_fails_is_told_of_once_and_stops_nothing(dataset, tmp_path, opened, capsys):
    made = opened("broken", Broken)
    settings = RUN | {"train.recorders": ["broken", "csv"], "data.val_split": None}
    doublehead.train(dataset, "single-fc-tiny", tmp_path / "run", settings=settings)
    assert [event[0] for event in made[0].told] == ["begin", "losses"]
    said = capsys.readouterr().err
    assert said.count("recorder broken failed (ConnectionError: no route to host)") == 1
    assert len(rows(tmp_path / "run" / "training.csv")) == 3


def test_the_failure_of_a_required_recorder_ends_the_run(dataset, tmp_path, opened):
    class Full(Diary):
        def losses(self, step, epoch, values):
            raise Fault("the disk is full")

    made = opened("full", Full, required=True)
    settings = RUN | {"train.recorders": ["full"], "data.val_split": None}
    with pytest.raises(Fault, match=r"the disk is full; .*resume"):
        doublehead.train(dataset, "single-fc-tiny", tmp_path / "run", settings=settings)
    assert made[0].told[-1] == ("end", False)
    assert not (tmp_path / "run" / "training.csv").exists()


def test_an_unknown_recorder_is_refused_before_anything_is_written():
    with pytest.raises(
        DoubleheadError, match=r"`train.recorders`: unknown recorder `clearml`; choose csv, tensorboard"
    ):
        resolve("single-fc-tiny", settings={"train.recorders": ["clearml"]})
