"""torchvision's Faster R-CNN trained as a preset is, and the comparison of finished runs."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rival import RESULT, compare, train_rival
from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.data.synthetic import synthesize
from doublehead.training.study.summary import Difference


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "shapes"
    synthesize(path, {"train": 8, "test": 6}, size=(160, 120), objects=(3, 6), lengths=(12, 40))
    return path


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "torchvision" / "seed-0"
    train_rival(str(shapes), output, 2, "double-head-nano", "cpu", {"data.workers": 0})
    return output


def write(folder: Path, results: list[dict]) -> Path:
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "predictions.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def truth(shapes: Path) -> list[dict]:
    """Every object as a detection."""
    split = open_dataset(shapes).read("test")
    return [
        {"image_id": r.image_id, "category_id": split.categories.ids[label - 1], "score": 1.0}
        | {"bbox": [float(x) for x in (box[0], box[1], box[2] - box[0], box[3] - box[1])]}
        for r in split.records
        for box, label in zip(r.boxes, r.labels, strict=True)
    ]


@pytest.mark.long
def test_a_run_leaves_its_figures_and_detections(shapes: Path, trained: Path) -> None:
    values = json.loads((trained / RESULT).read_text(encoding="utf-8"))
    assert values["steps"] == 2
    assert values["seconds_per_step"] > 0
    (row,) = compare(str(shapes), [trained])
    assert row.ap == pytest.approx(values["metrics"]["AP"], abs=1e-8)
    assert row.difference is None


@pytest.mark.long
def test_a_finished_run_is_kept(shapes: Path, trained: Path) -> None:
    before = (trained / RESULT).read_bytes()
    with pytest.raises(DoubleheadError, match="torchvision"):
        train_rival(str(shapes), trained, 1, "double-head-nano", "cpu")
    assert (trained / RESULT).read_bytes() == before


@pytest.mark.long
def test_a_seed_repeats_a_run(shapes: Path, trained: Path, tmp_path: Path) -> None:
    train_rival(str(shapes), tmp_path / "again", 2, "double-head-nano", "cpu", {"data.workers": 0})
    one, other = ((folder / "test" / "predictions.json").read_text("utf-8") for folder in (trained, tmp_path / "again"))
    assert one == other


def test_differences_are_those_of_the_same_images(shapes: Path, tmp_path: Path) -> None:
    right = truth(shapes)
    first = right[0]["image_id"]
    perfect, most = write(tmp_path / "all", right), [r for r in right if r["image_id"] != first]
    rows = compare(str(shapes), [perfect, perfect, write(tmp_path / "most", most)])
    assert rows[0].ap == pytest.approx(1)
    assert rows[1].difference == Difference(0, 0, 0)
    assert rows[2].difference is not None
    mean, low, high = astuple(rows[2].difference)
    assert low <= mean < 0
    assert high <= 0  # without the image that differs both are perfect
    assert np.isclose(mean, rows[2].ap - rows[0].ap)


def test_a_comparison_names_the_run_without_detections(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DoubleheadError, match="nothing-here"):
        compare(str(shapes), [write(tmp_path / "all", truth(shapes)), tmp_path / "nothing-here"])
