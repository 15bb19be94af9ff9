"""Runs killed at random moments, resumed, and compared with one that never was.

`DOUBLEHEAD_KILLS=50 DOUBLEHEAD_SEED=1 pytest -s tests/training/test_kills.py` is the long form.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from whole_runs import MODEL, SHORT, assert_same_run

from small import flags

KILLS, SEED = int(os.environ.get("DOUBLEHEAD_KILLS", 1)), int(os.environ.get("DOUBLEHEAD_SEED", 0))
# Every step is saved, so that many a kill comes while a file is written.
SETTINGS = SHORT | {"train.evaluate_every": 1.5, "train.save_minutes": 1e-9, "data.workers": 1}
SETTINGS |= {"train.steps": 24 if KILLS < 10 else 120}


def start(dataset: Path, run: Path) -> subprocess.Popen[str]:
    words = ["resume", run] if (run / "config.yaml").exists() else train_words(dataset, run)
    return subprocess.Popen(
        [sys.executable, "-m", "doublehead.cli", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def train_words(dataset: Path, run: Path) -> list[str | Path]:
    return ["train", dataset, "--model", MODEL, "-o", run, *flags(SETTINGS)]


def starts(run: Path) -> int:
    """How often the run got as far as to begin or go on."""
    return len(json.loads((run / "environment.json").read_text())) if (run / "environment.json").exists() else 0


def moment(run: Path, began: bool) -> str:
    """What a kill came upon."""
    if not began:
        return "while it started"
    if (run / ".writing").exists():
        return "while a file was written"
    return "while it trained or measured"


def test_killed_at_random_moments_a_run_ends_as_if_never_stopped(dataset, tmp_path):
    began = time.monotonic()
    assert start(dataset, tmp_path / "whole").wait() == 0
    duration = time.monotonic() - began
    chance, moments, number = random.Random(SEED), Counter(), 0
    while sum(moments.values()) < KILLS:
        number += 1
        run, finished = tmp_path / f"run{number}", False
        while not finished:
            before, process = starts(run), start(dataset, run)
            wait = chance.uniform(0, duration) if sum(moments.values()) < KILLS else None
            try:
                _, said = process.communicate(timeout=wait)
                assert process.returncode == 0, said
                finished = True
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                moments[moment(run, starts(run) > before)] += 1
        assert_same_run(run, tmp_path / "whole")
    print(f"\nseed {SEED}: {sum(moments.values())} kills of {number} runs, {dict(moments)}; all runs ended the same")
