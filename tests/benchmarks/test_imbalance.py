"""An imbalanced dataset: fewer training images of some classes, and nothing else changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.imbalance import imbalance
from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.data.records import Split
from doublehead.data.synthetic import synthesize


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "shapes"
    synthesize(path, {"train": 40, "val": 4, "test": 4}, size=(160, 120), objects=(1, 2), lengths=(12, 40))
    return path


def holding(split: Split, name: str) -> set[str]:
    label = split.categories.names.index(name) + 1
    return {record.path.name for record in split.records if label in record.labels}


def test_only_training_images_of_the_rare_class_are_dropped(balanced: Path, tmp_path: Path) -> None:
    imbalance(balanced, tmp_path / "out", ["ring"], keep=0.25)
    before, after = open_dataset(balanced), open_dataset(tmp_path / "out")
    for name in ("val", "test"):
        pairs = zip(before.read(name).records, after.read(name).records, strict=True)
        assert all((a.boxes.round(1) == b.boxes.round(1)).all() for a, b in pairs)
    old, new = before.read("train"), after.read("train")
    had, has = holding(old, "ring"), holding(new, "ring")
    assert has < had
    assert len(has) == max(1, round(0.25 * len(had)))
    others = {record.path.name for record in old.records} - had
    assert {record.path.name for record in new.records} == others | has
    assert new.categories.names == old.categories.names


def test_the_seed_decides_which(balanced: Path, tmp_path: Path) -> None:
    found = []
    for place, seed in enumerate((1, 1, 2)):
        imbalance(balanced, tmp_path / str(place), ["ring", "square"], seed=seed)
        found.append([record.path.name for record in open_dataset(tmp_path / str(place)).read("train").records])
    assert found[0] == found[1] != found[2]


def test_an_unknown_class_is_refused(balanced: Path, tmp_path: Path) -> None:
    with pytest.raises(DoubleheadError, match="no class `dog`"):
        imbalance(balanced, tmp_path / "out", ["dog"])
    assert not (tmp_path / "out").exists()
