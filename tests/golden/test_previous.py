"""Checkpoints that the previous version wrote give the detections that it gave (see README.md beside this file)."""

import json
from pathlib import Path

import numpy as np
import pytest

import doublehead

FOLDER = Path(__file__).parent / "previous"
EXPECTED = json.loads((FOLDER / "detections.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_a_checkpoint_of_the_previous_version_detects_the_same(name: str) -> None:
    coarse = np.random.default_rng(1).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    image = np.kron(coarse, np.ones((20, 20, 1), np.uint8))
    found = doublehead.load(FOLDER / f"{name}.safetensors", device="cpu").predict(image)
    expected = EXPECTED[name]
    assert len(expected["scores"]) > 0
    assert found.labels.tolist() == expected["labels"]
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=1e-3)
    np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-5)
