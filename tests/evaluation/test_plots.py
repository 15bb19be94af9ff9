"""Curves and contact sheets."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from doublehead.common.errors import DoubleheadError
from doublehead.data.records import Categories, Record
from doublehead.evaluation import plots
from doublehead.evaluation.coco import evaluate_detections
from doublehead.inference.detections import Detections


def measured(classes, annotated=True):
    """Metrics of one image with one box of each class, or none, and one detection of the first."""
    categories = Categories(tuple(f"class {k}" for k in range(classes)), tuple(range(1, classes + 1)))
    n = classes if annotated else 0
    boxes = np.tile(np.float32([0, 0, 50, 50]), (n, 1))
    record = Record(1, Path("1.jpg"), 90, 90, boxes, np.arange(1, n + 1), np.zeros(n, bool), np.full(n, 2500.0))
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 45], "score": 0.8}]
    return evaluate_detections([record], categories, found)


@pytest.fixture
def metrics():
    return measured(3)


def table(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def training(tmp_path):
    header = "step,epoch,lr,loss,any_name,other"
    return table(tmp_path / "t.csv", header, [(s, 1, 1e-3, 2 / s, 1 / s, 0.0) for s in range(1, 90)])


def size(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def test_precision_recall_leaves_pyplot_alone(metrics, tmp_path):
    pytest.importorskip("matplotlib")
    before = sys.modules.get("matplotlib.pyplot")
    assert size(plots.precision_recall(metrics, tmp_path / "new" / "pr.png"))[0] > 800
    assert sys.modules.get("matplotlib.pyplot") is before


@pytest.mark.parametrize("classes", [1, 30])
def test_precision_recall_of_one_many_and_unmeasured_classes(classes, tmp_path):
    pytest.importorskip("matplotlib")
    assert plots.precision_recall(measured(classes), tmp_path / "a.svg").is_file()
    assert plots.precision_recall(measured(classes, annotated=False), tmp_path / "b.png").is_file()


def test_training_curves_read_the_header(training, tmp_path):
    pytest.importorskip("matplotlib")
    validation = table(tmp_path / "v.csv", "step,epoch,AP,AP50,APs", [(10, 1, 0.1, 0.3, ""), (20, 2, 0.2, 0.5, "nan")])
    assert size(plots.training_curves(training, validation, tmp_path / "c.png"))[0] > 1000


@pytest.mark.parametrize("text", [None, "", "step,epoch,AP\n", "step,epoch,AP\n5,1,\n", "step,epoch,AP\n5,1,0.5\n6,2"])
def test_training_curves_with_little_validation(training, tmp_path, text):
    pytest.importorskip("matplotlib")
    validation = tmp_path / "v.csv"
    if text is not None:
        validation.write_text(text)
    assert plots.training_curves(training, validation, tmp_path / "c.png").is_file()
    assert plots.training_curves(training, None, tmp_path / "c.png").is_file()


def test_training_curves_of_one_row_or_one_not_finite(tmp_path):
    pytest.importorskip("matplotlib")
    for rows in ([(1, 1, 0.1, 3.0)], [(1, 1, 0.1, 3.0), (2, 1, 0.1, "nan")], [(1, 1, 0.0, 0.0)]):
        path = table(tmp_path / "t.csv", "step,epoch,lr,loss", rows)
        assert plots.training_curves(path, None, tmp_path / "c.png").is_file()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("", "no training steps"),
        ("step,loss\n", "no training steps"),
        ("step\nx\n", "number"),
    ],
)
def test_training_files_without_figures_are_named(tmp_path, text, words):
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DoubleheadError, match=rf"t\.csv.*{words}"):
        plots.training_curves(path, None, tmp_path / "c.png")


def test_sheet_holds_pictures_of_every_size(tmp_path):
    found = Detections([[1, 1, 9, 9]], [0.8], [2], ("cat", "dog"), (4, 6))
    nothing = Detections([], [], [], ("cat", "dog"))
    pairs = [
        (Image.new("L", (20, 10)), np.array([[0, 0, 5, 5]]), np.array([1]), found),
        (Image.new("RGB", (300, 900)), np.zeros((0, 4)), np.zeros(0, int), nothing),
    ]
    wide, high = size(plots.truth_and_predictions(pairs, tmp_path / "sheet.jpg", width=200))
    assert wide == 2 * 200 + 3 * 8
    assert high == 34 + (100 + 8) + (200 + 8)
    assert size(plots.truth_and_predictions(pairs, tmp_path / "sheet.png", width=200, rows=1))[1] == 34 + 108
    with pytest.raises(DoubleheadError, match="no images"):
        plots.truth_and_predictions([], tmp_path / "sheet.png")


def test_a_missing_extra_is_answered_by_the_pip_command(metrics, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DoubleheadError, match=r"matplotlib.*pip install 'doublehead\[plots\]'"):
        plots.precision_recall(metrics, tmp_path / "pr.png")


def test_unknown_picture_format_is_named(metrics, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(DoubleheadError, match="not a picture format"):
        plots.precision_recall(metrics, tmp_path / "pr.xyz")
