from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

import doublehead
from doublehead import cli
from doublehead.data.synthetic import synthesize
from small import SMALL


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless it is asked for."""
    if "DOUBLEHEAD_LONG" not in os.environ:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="DOUBLEHEAD_LONG is not set"))


@pytest.fixture(scope="session", autouse=True)
def _no_cache() -> None:
    """Leave the user's cache alone, here and in the commands that tests start."""
    os.environ["DOUBLEHEAD_CACHE"] = ""


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Give a name and what fills a folder, get that folder: the first test process fills it, the others wait."""

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once" / name
        folder.parent.mkdir(exist_ok=True)
        done = folder.with_name(f"{name}.done")
        with FileLock(folder.with_name(f"{name}.lock")):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a process left that failed
                fill(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def dataset(once) -> Path:
    """Eight training images, four to validate and three to test; category ids with gaps: 7, 17, 27 ..."""
    return once("shapes", _shapes)


def _shapes(path: Path) -> None:
    synthesize(path, {"train": 8, "val": 4, "test": 3}, size=(96, 64))
    for file in (path / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["id"] = 10 * category["id"] - 3
        for annotation in content["annotations"]:
            annotation["category_id"] = 10 * annotation["category_id"] - 3
        file.write_text(json.dumps(content))


@pytest.fixture
def own_dataset(dataset, tmp_path) -> Path:
    """A copy of the dataset to spoil."""
    return shutil.copytree(dataset, tmp_path / "own")


@pytest.fixture(scope="session")
def trained(dataset, once, tmp_path_factory) -> Path:
    """The folder of a finished run; its model gives detections even if they are poor."""
    settings = SMALL | {"train.steps": 40, "train.evaluate_every": 5, "model.roi.score_threshold": 0.01}
    run = once("trained", lambda output: doublehead.train(dataset, "double-head-tiny", output, settings=settings))
    return shutil.copytree(run, tmp_path_factory.mktemp("runs") / "trained")  # commands write beside the weights


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What a mistake was answered with: one line, after what was said of the data, and never a traceback."""
        assert self.code == 2, self.err
        assert "Traceback" not in self.err
        *_, last = self.err.splitlines()
        assert [line for line in self.err.splitlines() if line.startswith("error: ")] == [last]
        return last.removeprefix("error: ")


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Run a command of the command line in this process."""

    def run(*words: str | Path) -> Outcome:
        monkeypatch.setattr("sys.argv", ["doublehead", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return Outcome(code or 0, *capsys.readouterr())

    return run
