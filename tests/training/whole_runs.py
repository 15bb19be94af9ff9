"""Runs that were stopped, beside one that never was."""

from __future__ import annotations

from doublehead.model.checkpoint import load_checkpoint
from doublehead.training import csv_files
from small import SMALL

MODEL = "double-head-tiny"
SHORT = SMALL | {"train.steps": 8, "train.evaluate_every": 1, "train.ema": 0.9}
"""A run of two epochs of four steps."""


def assert_same_weights(run, whole):
    one, other = load_checkpoint(run / "last.safetensors"), load_checkpoint(whole / "last.safetensors")
    for part in ("weights", "training"):
        tensors, expected = getattr(one, part), getattr(other, part)
        assert tensors.keys() == expected.keys()
        assert [key for key in expected if not tensors[key].equal(expected[key])] == []
    assert one.notes | {"seconds": 0} == other.notes | {"seconds": 0}
    best, expected = load_checkpoint(run / "best.safetensors"), load_checkpoint(whole / "best.safetensors")
    assert best.notes == expected.notes
    assert all(best.weights[key].equal(expected.weights[key]) for key in expected.weights)


def assert_same_run(run, whole):
    assert_same_weights(run, whole)
    for name in ("training.csv", "validation.csv"):
        assert (run / name).read_text() == (whole / name).read_text()
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}


def stop_at(monkeypatch, step, what):
    """Do `what` in place of going on, once the row of that step is written."""
    append = csv_files.append_row

    def appended(path, row):
        append(path, row)
        if row["step"] == step and path.name == "training.csv":
            monkeypatch.setattr(csv_files, "append_row", append)
            what()

    monkeypatch.setattr(csv_files, "append_row", appended)
