"""studies/make_imbalanced.py as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from doublehead.data.dataset import open_dataset

SCRIPT = Path(__file__).parents[3] / "studies" / "make_imbalanced.py"


def test_rare_classes_lose_whole_training_images_and_nothing_else_changes(dataset, tmp_path) -> None:
    before = open_dataset(dataset).read("train")
    rare = before.categories.names[int(before.records[0].labels[0]) - 1]
    output = tmp_path / "rare"
    words = [sys.executable, SCRIPT, dataset, output, "--rare", rare, "--keep", "0.25"]
    subprocess.run(words, check=True, capture_output=True)
    label = before.categories.names.index(rare) + 1
    after = open_dataset(output).read("train")
    images = sum(label in record.labels for record in before.records)
    assert sum(label in record.labels for record in after.records) == max(1, round(images / 4))
    left = {record.path.name: record for record in after.records}
    for record in before.records:
        if record.path.name in left or label not in record.labels:
            np.testing.assert_allclose(left[record.path.name].boxes, record.boxes, atol=1e-3)
    test, same = (open_dataset(folder).read("test") for folder in (dataset, output))
    assert [r.path.name for r in test.records] == [r.path.name for r in same.records]
    assert all(
        np.allclose(one.boxes, two.boxes, atol=1e-3) for one, two in zip(test.records, same.records, strict=True)
    )


def test_an_unknown_class_is_named(dataset, tmp_path) -> None:
    words = [sys.executable, SCRIPT, dataset, tmp_path / "rare", "--rare", "unicorn"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "unicorn" in done.stderr
    assert "Traceback" not in done.stderr
