import numpy as np
import pytest
from PIL import Image

from doublehead.common.errors import DoubleheadError
from doublehead.data import synthetic
from doublehead.data.check import check_images
from doublehead.data.dataset import open_dataset
from doublehead.data.synthetic import CLASSES, synthesize


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_a_longer_split_begins_alike(tmp_path):
    first = content(synthesize(tmp_path / "a", {"train": 6, "val": 2}, seed=3))
    assert first == content(synthesize(tmp_path / "b", {"train": 6, "val": 2}, seed=3))
    longer = content(synthesize(tmp_path / "c", {"train": 8}, seed=3))
    images = {path: data for path, data in first.items() if path.parts[0] == "train"}
    assert images.items() <= longer.items()
    other = content(synthesize(tmp_path / "d", {"train": 6}, seed=4))
    assert all(other[path] != data for path, data in images.items())
    assert len(set(first.values())) == len(first)


def test_it_is_a_dataset_like_any_other(tmp_path):
    seen = []
    synthesize(tmp_path / "a", {"train": 40, "test": 3}, size=(200, 160), progress=lambda: seen.append(1))
    assert len(seen) == 43
    dataset = open_dataset(tmp_path / "a")
    assert list(dataset.splits) == ["train", "test"]
    train = dataset.read("train")
    assert train.categories.names == CLASSES
    assert not train.findings.counts
    check_images(train.records + dataset.read("test").records)
    boxes = np.concatenate([record.boxes for record in train.records])
    assert set(np.concatenate([record.labels for record in train.records])) == set(range(1, 7))
    lengths = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert lengths.min() >= 10
    assert lengths.max() <= 2 / 3 * 160 + 2
    assert (boxes >= 0).all()
    assert (boxes <= [200, 160, 200, 160]).all()
    assert max(len(record.boxes) for record in train.records) <= 12
    assert min(len(record.boxes) for record in train.records) >= 1
    areas = np.concatenate([record.areas for record in train.records])
    assert (areas <= (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)).all()


def test_boxes_are_tight_around_what_is_painted(monkeypatch):
    """On a flat ground, the box of a shape without neighbours is where the picture differs from the ground."""
    monkeypatch.setattr(synthetic, "_ground", lambda rng, width, height: np.full((height, width, 3), 128.0))
    slack = []
    for index in range(30):
        pixels, objects = synthetic._scene(np.random.default_rng(index), 320, 240)
        differs = np.abs(pixels.astype(int) - 128).max(axis=2) > 25  # the grain's deviation is 5 at most
        for x, y, w, h in (item["bbox"] for item in objects):
            inside = differs[y : y + h, x : x + w]
            if differs[max(0, y - 4) : y + h + 4, max(0, x - 4) : x + w + 4].sum() > inside.sum() + 0.05 * w * h:
                continue  # a neighbour
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            slack.append(max(rows[0], columns[0], h - 1 - rows[-1], w - 1 - columns[-1]))
    assert len(slack) > 20
    assert np.mean(np.array(slack) <= 1) > 0.9


def test_pieces_are_painted_but_have_no_label(monkeypatch):
    painted = []
    paint = synthetic._paint
    monkeypatch.setattr(synthetic, "_paint", lambda *inputs: (painted.append(1), paint(*inputs)))
    labelled = sum(len(synthetic._scene(np.random.default_rng(index), 320, 240)[1]) for index in range(30))
    assert 0.15 < 1 - labelled / len(painted) < 0.4


def test_it_writes_into_no_folder_in_use_and_refuses_numbers_out_of_range(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.png")
    with pytest.raises(DoubleheadError, match="is not empty"):
        synthesize(tmp_path, {"train": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    for images, options in (
        ({}, {}),
        ({"train": 0}, {}),
        ({"train": 1}, {"seed": -1}),
        ({"train": 1}, {"size": (9, 9)}),
    ):
        with pytest.raises(DoubleheadError, match="needs a size from 64x64"):
            synthesize(tmp_path / "new", images, **options)
    with pytest.raises(DoubleheadError, match="cannot be written"):
        synthesize(tmp_path / "mine.png", {"train": 1})
