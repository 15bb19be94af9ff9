"""Loader processes under each start method, and limits of the system that they meet."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from whole_runs import SHORT

import doublehead
from small import rows

SCRIPT = """
import multiprocessing, sys
import doublehead
from doublehead.common.errors import DoubleheadError

def main():
    try:
        doublehead.train({data!r}, "single-fc-tiny", {run!r}, settings={settings!r})
    except DoubleheadError as error:
        sys.exit(f"error: {{type(error).__name__}}: {{error}}")

if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
{call}
"""


def run_script(dataset, tmp_path, method, call):
    settings = SHORT | {"data.workers": 1, "data.val_split": None, "train.steps": 2}
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(data=str(dataset), run=str(tmp_path / "run"), settings=settings, method=method, call=call)
    )
    environment = os.environ | {"PYTHONPATH": str(Path(doublehead.__file__).parents[1])}
    return subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path)


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.long)])
def test_a_script_with_the_guard_trains(dataset, tmp_path, method):
    done = run_script(dataset, tmp_path, method, "    main()")
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run" / "training.csv")) == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.long)])
def test_a_script_without_the_guard_is_told_of_it(dataset, tmp_path, method):
    done = run_script(dataset, tmp_path, method, "main()")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("error: DoubleheadError: the script ran a second time in a process that was to load images")
    assert '`if __name__ == "__main__":`' in last


def test_too_few_open_files_are_told_in_a_sentence(dataset, tmp_path):
    words = ["train", dataset, "--model", "single-fc-tiny", "-o", tmp_path / "run", "--device", "cpu"]
    words += ["--set", "data.workers=4", "--set", "data.val_split=null", "--set", "train.batch_size=8"]
    done = subprocess.run(
        [sys.executable, "-m", "doublehead.cli", *map(str, words)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "open files, and the limit is 48: raise the limit, such as `ulimit -n 4096`" in done.stderr.splitlines()[-1]
