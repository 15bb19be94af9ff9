"""A cascade by the command line: everything that a plain detector does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from doublehead.model.checkpoint import load_model
from small import SMALL, config_of, flags, rows

FEW: dict[str, object] = SMALL | {
    "model.roi.score_threshold": 0.01,
    "model.narrow_head.width": 16,
    "train.steps": 3,
    "train.evaluate_every": 1000,
    "train.seed": 1,
}


@pytest.fixture(scope="module")
def cascade(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a few steps."""
    import doublehead

    output = tmp_path_factory.mktemp("cascade") / "run"
    doublehead.train(dataset, "cascade-double-head-tiny", output, settings=FEW | {"model.cascade.early": "narrow"})
    return output


def test_training_names_its_losses_by_stage_and_keeps_its_settings(cascade: Path) -> None:
    last = rows(cascade / "training.csv")[-1]
    named = [name for name in last if name.startswith("stage")]
    tasks = [f"stage{n}_{task}" for n in (1, 2) for task in ("fc_classify", "narrow_regress")]
    assert named == [*tasks, "stage3_fc_classify", "stage3_conv_regress"]
    assert last["loss"] == pytest.approx(
        sum(v for k, v in last.items() if k.endswith(("classify", "regress"))), rel=1e-4
    )
    stored = config_of(cascade)["model"]["cascade"]
    assert (stored["convention"], stored["ious"]) == ("mmdetection", [0.5, 0.6, 0.7])


@pytest.mark.long
def test_it_evaluates_predicts_and_exports(cascade: Path, dataset: Path, tmp_path: Path, command) -> None:
    weights = cascade / "best.safetensors"
    outcome = command("evaluate", weights, dataset, "--split", "test", "-o", tmp_path / "measured")
    assert outcome.code == 0, outcome.err
    image = next((dataset / "test").iterdir())
    outcome = command("predict", weights, image, "-o", tmp_path / "found", "--set", "roi.inference_proposals=all")
    assert outcome.code == 0, outcome.err
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    outcome = command("export", weights, "-o", tmp_path / "a.onnx")
    assert outcome.code == 0, outcome.err
    assert "a.onnx holds cascade-double-head, 6 classes" in outcome.out


def test_what_a_copy_with_other_settings_may_change(cascade: Path, tmp_path: Path, command) -> None:
    weights = cascade / "best.safetensors"
    outcome = command("convert", weights, tmp_path / "mean.safetensors", "--set", "model.cascade.scores=probabilities")
    assert outcome.code == 0, outcome.err
    own, other = (load_model(path)[0] for path in (weights, tmp_path / "mean.safetensors"))
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    assert not torch.equal(own.detect([image])[0]["scores"], other.detect([image])[0]["scores"])
    words = ("convert", weights, tmp_path / "two.safetensors", "--set", "model.cascade.ious=[0.5,0.6]")
    assert "deviations" in command(*words).sentence


def test_the_analysis_says_what_of_a_cascade_it_shows(cascade: Path, dataset: Path, tmp_path: Path, command) -> None:
    pytest.importorskip("matplotlib")
    few = ("--objects", "3", "--windows", "40", "--images", "2")
    outcome = command("analyze", cascade / "best.safetensors", dataset, *few, "-o", tmp_path / "report")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "report" / "analysis.json").read_text())["found"]
    assert "3 stages" in found["Stages"]


def test_a_cascade_of_a_variant_without_class_agnostic_boxes_is_told_how(
    dataset: Path, tmp_path: Path, command
) -> None:
    settings = flags(SMALL | {"model.cascade": "mmdetection"})
    outcome = command("train", dataset, "--model", "double-fc-tiny", "--output", tmp_path / "run", *settings)
    assert "model.roi.class_agnostic=true" in outcome.sentence
