"""The learning-rate finder: a sweep that ends where the loss diverges, and spoils no run."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from whole_runs import MODEL, SHORT

from doublehead.training.rate_finder import EARLY, RateSweep
from small import flags, rows

SETTINGS = {key: value for key, value in SHORT.items() if key != "train.device"}


def rates(count, lowest=1e-6, highest=1.0):
    return [lowest * (highest / lowest) ** (step / (count - 1)) for step in range(count)]


def test_the_suggestion_lies_below_the_rate_with_the_lowest_loss():
    tried = rates(100)
    losses = [2.0 + abs(math.log10(rate) + 3) ** 2 for rate in tried]  # lowest at 1e-3
    found = RateSweep.of(tried, losses)
    assert 1e-3 <= found.best < 1e-2  # smoothing lags behind
    assert 1e-4 < found.suggested < found.best


@pytest.mark.parametrize("end", [math.nan, math.inf, 1e4])
def test_a_loss_that_diverges_ends_the_sweep_and_is_not_the_lowest(end):
    tried = rates(60)
    found = RateSweep.of(tried, [*(3.0 - 0.05 * step for step in range(40)), *[end] * 20])
    assert found.diverged
    assert len(found.rates) <= 42
    assert found.best == tried[39]


def test_a_sweep_that_ends_too_early_or_begins_too_late_says_so():
    falling = RateSweep.of(rates(40), [4.0 - 0.05 * step for step in range(40)])
    rising = RateSweep.of(rates(40), [1.0 + 0.01 * step for step in range(40)])
    assert "--highest" in falling.words()
    assert "--lowest" in rising.words()


def test_the_command_writes_a_sweep_and_a_picture(dataset, tmp_path, command):
    words = ["find-lr", dataset, "--model", MODEL, "--device", "cpu", "--steps", "24", *flags(SETTINGS)]
    outcome = command(*words, "-o", tmp_path / "lr", "--lowest", "1e-6", "--highest", "1e4")
    assert outcome.code == 0, outcome.err
    assert "train.lr=" in outcome.out
    written = rows(tmp_path / "lr" / "sweep.csv")
    assert written[0]["lr"] == pytest.approx(1e-6)
    assert EARLY < len(written) < 24  # at a rate of 10,000 it has diverged
    steps = [later["lr"] / row["lr"] for row, later in pairwise(written)]
    assert steps == pytest.approx([10 ** (10 / 23)] * len(steps), rel=1e-4)
    assert {path.name for path in (tmp_path / "lr").iterdir()} == {"sweep.csv", "sweep.png"}
    assert command(*words, "-o", tmp_path / "again", "--lowest", "1e-6", "--highest", "1e4").code == 0
    assert rows(tmp_path / "again" / "sweep.csv") == written


def test_the_folder_of_a_run_is_refused_and_left_as_it_is(dataset, trained, command):
    before = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    words = ["find-lr", dataset, "--model", MODEL, "--device", "cpu", *flags(SETTINGS)]
    assert str(trained) in command(*words, "-o", trained).sentence
    assert {path: path.stat().st_mtime_ns for path in trained.iterdir()} == before


def test_rates_in_the_wrong_order_are_refused(dataset, tmp_path, command):
    words = ["find-lr", dataset, "--model", MODEL, "--device", "cpu", *flags(SETTINGS), "-o", tmp_path / "lr"]
    assert "0.1 to 0.01" in command(*words, "--lowest", "0.1", "--highest", "0.01").sentence
    assert not (tmp_path / "lr").exists()
