"""What starts without torch, which alone takes seconds and half a gigabyte."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

import doublehead
from doublehead import cli

BENCHMARKS = ("inference", "training", "owners", "export", "floor")
HELPS = [
    ["--help"],
    *([name, "--help"] for name in typer.main.get_command(cli.app).commands),
    *(["benchmark", name, "--help"] for name in BENCHMARKS),
]

RUN = """
import sys
from doublehead.cli import main

for words in {lines!r}:
    sys.argv = ["doublehead", *words]
    try:
        main()
    except SystemExit as end:
        print("exit code", end.code or 0)
print("heavy:", sorted({{"torch", "torchvision", "hotcoco", "matplotlib"}} & sys.modules.keys()))
"""


def run(*lines: list[str]) -> tuple[list[int], str]:
    """Run commands in one process of their own; their exit codes, and all they said."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(lines=lines)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: []\n"), done.stdout
    codes = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("exit code")]
    return codes, done.stdout + done.stderr


def test_help_and_version_leave_torch_unimported():
    codes, said = run(["--version"], *HELPS)
    assert codes == [0] * (1 + len(HELPS))
    assert said.startswith(doublehead.__version__)
    assert said.count("Usage: ") == len(HELPS)


def test_check_leaves_torch_unimported(dataset, tmp_path):
    codes, said = run(["check", str(dataset), "--report", str(tmp_path), "--json", str(tmp_path / "found.json")])
    assert codes == [0]
    assert "no errors" in said
    assert (tmp_path / "index.html").is_file()


def test_a_wrong_path_leaves_torch_unimported(dataset, tmp_path):
    gone, file = str(tmp_path / "gone"), str(dataset / "annotations" / "instances_val.json")
    commands = (
        ["check", gone],
        ["to-coco", gone, str(tmp_path / "coco")],
        ["train", gone, "--model", "double-head-tiny"],
        ["evaluate", gone, str(dataset)],
        ["evaluate", file, gone],
        ["calibrate", gone, str(dataset)],
        ["analyze", gone, str(dataset)],
        ["predict", gone, file],
        ["serve", gone],
        ["export", gone, "-o", str(tmp_path / "model.onnx")],
        ["benchmark", "owners", gone, str(dataset)],
    )
    codes, said = run(*commands)
    assert codes == [1] + [2] * (len(commands) - 1)
    assert said.count(f"error: {gone}: there is no such ") == len(commands) - 1


def test_the_package_names_what_it_imports_when_used():
    assert set(doublehead.__all__) <= set(dir(doublehead))
    for name in doublehead.__all__:
        assert getattr(doublehead, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        doublehead.nonsense  # noqa: B018
