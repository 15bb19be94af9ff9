"""Real images, where they lie beside the project."""

import json
from pathlib import Path

import pytest

from small import SMALL, flags

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
COCO = SHARED / "coco_ccby"

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the real images of ../shared/data are not here")


def test_coco_images_train_evaluate_and_predict_with_their_own_ids(tmp_path, command) -> None:
    """48 images, 80 categories whose ids have gaps, crowds, images without boxes."""
    run = tmp_path / "run"
    settings = SMALL | {"train.steps": 6, "model.roi.score_threshold": 0.005}
    trained = command("train", COCO, "--model", "double-head-ext-tiny", "--output", run, *flags(settings))
    assert trained.code == 0, trained.err
    assert "80/10/10" in trained.err
    measured = command("evaluate", run / "best.safetensors", COCO, "--split", "all")
    assert measured.code == 0, measured.err
    metrics = json.loads((run / "evaluation-all" / "metrics.json").read_text())
    truth = json.loads((COCO / "instances.json").read_text())
    ids = [category["id"] for category in truth["categories"]]
    assert [c["category_id"] for c in metrics["classes"]] == sorted(ids)
    assert len(ids) == 80
    assert max(ids) == 90
    results = json.loads((run / "evaluation-all" / "predictions.json").read_text())
    assert results
    assert {r["category_id"] for r in results} <= set(ids)
    photos = SHARED / "photos"
    seen = command("predict", run / "best.safetensors", photos, "-o", tmp_path / "out", "--score", "0")
    assert seen.code == 0, seen.err
    predicted = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(predicted["images"]) == len(list(photos.glob("*.jpg"))) == 3
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 3


def test_bccd_trains_from_its_folder(tmp_path, command) -> None:
    run = tmp_path / "run"
    words = ("train", SHARED / "bccd", "--model", "double-head-tiny", "--output", run)
    outcome = command(*words, *flags(SMALL | {"train.steps": 2, "data.val_split": None}))
    assert outcome.code == 0, outcome.err
    assert "205 images" in outcome.err
    assert "1 boxes without area ignored, such as BloodImage_00343" in outcome.err
