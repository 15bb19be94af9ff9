"""Families of timm from training to an exported file. It takes minutes and runs when asked for:

DOUBLEHEAD_FAMILIES=1 python -m pytest tests/model/test_families.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from timm_families import FAMILIES

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.deploy.export import export
from doublehead.model.checkpoint import load_checkpoint
from small import SMALL, rows

pytestmark = pytest.mark.skipif("DOUBLEHEAD_FAMILIES" not in os.environ, reason="DOUBLEHEAD_FAMILIES is not set")
pytest.importorskip("timm")

SIZE_DEPENDENT = ("swin_tiny_patch4_window7_224",)
"""Families whose windows depend on the image's size, which are not exported."""


@pytest.mark.parametrize("model", FAMILIES)
def test_a_family_trains_predicts_and_exports(model: str, dataset: Path, tmp_path: Path) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "model.backbone.norm"} | {
        "model.backbone.weights": None,
        "model.backbone.norm": "batch",
        "model.backbone.trainable_stages": 5,
        "model.roi.score_threshold": 0.001,
        "train.steps": 2,
        "train.layer_decay": 0.7,
        "data.val_split": None,
    }
    best = doublehead.train(dataset, "double-head-lite", tmp_path / "run", settings=settings, backbone=model)
    assert len(rows(tmp_path / "run" / "training.csv")) == 2
    assert load_checkpoint(best).config.backbone.network == model
    found = doublehead.load(best).predict(np.full((96, 150, 3), 120, dtype=np.uint8))
    assert len(found) > 0
    if model in SIZE_DEPENDENT:
        with pytest.raises(DoubleheadError, match=r"model\.backbone"):
            export(best, tmp_path / "model.onnx")
    else:
        assert export(best, tmp_path / "model.onnx").path.is_file()  # which compares it with the checkpoint
