"""Python blocks of README and docs are run as written, on small stand-ins; what is not run says why."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import doublehead
from doublehead.model.parts import TRUNKS
from small import SMALL

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not tested: (?P<reason>[^>]+) -->\n\n?)?```python\n(?P<code>.*?)```", re.DOTALL)


def blocks(page: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text()))


@pytest.fixture(scope="module")
def named(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset with classes that the pages name, and the weights of a model trained on it."""
    data = Path(shutil.copytree(dataset, tmp_path_factory.mktemp("named") / "data"))
    for file in (data / "annotations").glob("*.json"):
        file.write_text(file.read_text().replace('"circle"', '"WBC"').replace('"square"', '"car"'))
    settings = SMALL | {"train.steps": 4, "model.roi.score_threshold": 0.01}
    return data, doublehead.train(data, "double-head-tiny", data.parent / "run", settings=settings)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_blocks_run_as_written(page: Path, named: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image.Image, "show", lambda image: None)
    monkeypatch.setattr("doublehead.evaluation.calibrate.FEWEST", 4)  # the model has seen a few images
    monkeypatch.setattr("doublehead.model.parts.TRUNKS", dict(TRUNKS))
    shrink_training(monkeypatch)
    stand_ins(tmp_path, *named)
    space: dict[str, Any] = {"doublehead": doublehead, "mine": own(4), "others": own(2)}
    for block in blocks(page):
        ast.parse(block["code"])
        if block["reason"] is None:
            exec(compile(block["code"], page.name, "exec"), space)


def shrink_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `train` take any model for a tiny one, and a few steps."""
    train = doublehead.train

    def few_steps(data: Any, model: str, output: Any = None, **others: Any) -> Path:
        settings = SMALL | {"train.steps": 2, "train.epochs": None}
        others["settings"] = {**others.get("settings", {}), **settings}
        return train(data, "double-head-tiny", output or f"runs/own-{model}", **others)

    monkeypatch.setattr(doublehead, "train", few_steps)


def stand_ins(folder: Path, dataset: Path, weights: Path) -> None:
    """The files that the blocks name."""
    shutil.copytree(dataset, folder / "BCCD")
    shutil.copytree(dataset, folder / "path/to/dataset")
    for name in ("best", "a", "b", "runs/dataset-double-head-fused-lite/best"):
        (folder / f"{name}.safetensors").parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(weights, folder / f"{name}.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)).save(folder / "photo.jpg")


def own(images: int) -> list[tuple[np.ndarray, dict[str, Any]]]:
    random = np.random.default_rng(images)
    boxes = {"boxes": np.array([[10, 12, 50, 44]], np.float32), "labels": np.array([1])}
    return [(random.integers(0, 255, (64, 96, 3), np.uint8), boxes) for _ in range(images)]
