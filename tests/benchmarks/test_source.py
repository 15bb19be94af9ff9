"""`doublehead benchmark` where the package is installed and the source may not be there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path):
    """The package alone, as in site-packages; runs `doublehead benchmark --help` with it in a folder."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "src" / "doublehead", site / "doublehead", ignore=shutil.ignore_patterns("__pycache__"))

    def run(folder: Path) -> subprocess.CompletedProcess:
        words = [sys.executable, "-c", "from doublehead.cli import main; main()", "benchmark", "--help"]
        return subprocess.run(
            words, cwd=folder, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True
        )

    return run


def test_without_the_source_one_sentence_says_what_is_needed(installed, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "benchmarks").mkdir(parents=True)
    (elsewhere / "benchmarks" / "cli.py").write_text("print('code of another project')")
    done = installed(elsewhere)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: `doublehead benchmark` needs a checkout of the source")


def test_in_a_checkout_the_installed_package_finds_the_benchmarks(installed):
    done = installed(ROOT)
    assert done.returncode == 0, done.stderr
    assert "Usage: doublehead benchmark" in done.stdout
