"""The wheel, in an environment that holds nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_the_wheel_detects_in_an_empty_environment(tmp_path):
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", cwd=ROOT)
    wheel, source = next(tmp_path.glob("dist/*.whl")), next(tmp_path.glob("dist/*.tar.gz"))
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source, cwd=ROOT)
    assert wheel.stat().st_size < 10e6
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    binaries = tmp_path / "env" / "bin"
    run(binaries / "pip", "install", wheel, cwd=tmp_path)
    run(binaries / "pip", "check", cwd=tmp_path)
    script = "from doublehead.deploy.demo import WEIGHTS; print(WEIGHTS)"
    weights = Path(run(binaries / "python", "-c", script, cwd=tmp_path).strip())
    assert weights.is_relative_to(tmp_path)
    run(binaries / "doublehead", "synthesize", "shapes", "--train", "1", "--val", "0", "--test", "0", cwd=tmp_path)
    run(binaries / "doublehead", "predict", weights, "shapes/train", "-o", "found", "--device", "cpu", cwd=tmp_path)
    assert json.loads((tmp_path / "found" / "predictions.json").read_text())["annotations"]
    assert (tmp_path / "found" / "000000.jpg").is_file()
