"""The picture of two heads against one, from what studies leave behind."""

from __future__ import annotations

import csv
import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import two_heads
from doublehead.common.errors import DoubleheadError
from doublehead.training.study.summary import IOUS


def write(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as text:
        lines = csv.DictWriter(text, list(rows[-1]))
        lines.writeheader()
        lines.writerows(rows)


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """Comparisons in which double-head is ahead by a point, and its AP after 100 steps with two seeds."""
    monkeypatch.setattr(two_heads, "RESULTS", tmp_path)
    for place, folder in enumerate(chain.from_iterable(two_heads.FOLDERS.values())):
        at = {"AP": 0.5 + 0.1 * place, "difference": "", "low": "", "high": ""}
        ahead = at | {"AP": at["AP"] + 0.01, "difference": 0.01, "low": -0.01, "high": 0.03}
        lines = [
            {"row": row} | {f"{name}_at_{iou:.2f}": value for iou in IOUS for name, value in figures.items()}
            for row, figures in (("single-fc", at), ("double-head", ahead), ("fused boxes", ahead))
        ]
        write(tmp_path / folder / "summary.csv", lines)
    pooled = [{"row": "double-head", "iou": "all", "difference": 9, "low": 9, "high": 9}]
    pooled += [pooled[0] | {"iou": f"{iou:.2f}", "difference": 0.02, "low": 0, "high": 0.04} for iou in IOUS]
    write(tmp_path / "raccoon-folds" / "pooled.csv", pooled + [line | {"row": "fused boxes"} for line in pooled])
    for data in two_heads.FOLDERS:
        for seed, ap in enumerate((0.5, 0.6)):
            file = tmp_path / "budget" / "100" / data / "double-head" / f"seed-{seed}" / "result.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps({"metrics": {"AP": ap}}))
    return tmp_path


def test_figures_are_the_studies(results):
    folds = two_heads.FOLDERS["raccoon"]
    assert two_heads.aps(folds, "single-fc") == pytest.approx(np.full(10, 80))  # the mean of 70, 80 and 90
    assert two_heads.difference(folds, "double-head") == pytest.approx(np.tile([2, 0, 4], (10, 1)))
    assert two_heads.difference(["two-heads/chess"], "double-head") == pytest.approx(np.tile([1, -1, 3], (10, 1)))
    assert two_heads.by_steps("chess") == {"double-head": {100: pytest.approx(55)}}


def test_draws_one_picture(results, tmp_path):
    two_heads.main(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 1000


def test_a_study_that_was_not_compared_is_named(results, tmp_path):
    (results / "two-heads" / "bccd" / "summary.csv").unlink()
    with pytest.raises(DoubleheadError, match=r"two-heads.bccd.summary\.csv"):
        two_heads.main(tmp_path / "picture.png")
