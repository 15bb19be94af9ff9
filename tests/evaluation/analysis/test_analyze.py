"""The whole analysis, as a user runs it."""

import json
import re

import numpy as np
import pytest
import torch

import doublehead
from doublehead.common.categories import Categories
from doublehead.config import ModelConfig, override
from doublehead.data.dataset import open_dataset
from doublehead.evaluation.analysis import analyze, heads, look
from doublehead.evaluation.budget import Budget
from doublehead.model.checkpoint import save_checkpoint
from doublehead.model.detector import Detector
from doublehead.model.presets import preset_values
from small import SMALL, without_boxes

FEW = ("--objects", "5", "--windows", "40")


def untrained(path, preset, categories, **settings):
    """A checkpoint with seeded weights, whose predictors are large enough for scores and boxes to differ."""
    own = {key.removeprefix("model."): value for key, value in SMALL.items() if key.startswith("model.")}
    config = ModelConfig.model_validate(override(preset_values(preset), own | settings))
    torch.manual_seed(0)
    model = Detector(config, len(categories))
    for branch in model.roi_heads:
        if branch.classifier is not None:
            torch.nn.init.normal_(branch.classifier.weight, std=1.0)
        if branch.regressor is not None:
            torch.nn.init.normal_(branch.regressor.weight, std=0.1)
    save_checkpoint(path, config, categories, model.state_dict(), {})
    return path


@pytest.fixture
def ext(dataset, tmp_path):
    return untrained(tmp_path / "ext.safetensors", "double-head-ext-tiny", open_dataset(dataset).read("val").categories)


def test_two_models_are_compared_in_a_page_that_needs_nothing_else(dataset, trained, ext, tmp_path, command):
    pytest.importorskip("matplotlib")
    outcome = command("analyze", trained / "best.safetensors", ext, dataset, *FEW, "-o", tmp_path / "report")
    assert outcome.code == 0, outcome.err
    html = (tmp_path / "report" / "index.html").read_text()
    text = re.sub(r'"data:[^"]*"', '""', html)
    assert len(text) < len(html)
    assert "@media screen and (prefers-color-scheme: dark)" in html
    assert not re.findall(r'(?:src|href)="[^"]', text)
    assert "http" not in text
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL).split()

    content = json.loads((tmp_path / "report" / "analysis.json").read_text())
    assert content["found"]["Scores"] in outcome.out
    assert re.sub(r"\W", "", content["found"]["Scores"]) in re.sub(r"&#39;|\W", "", text)
    assert [model["name"] for model in content["models"]] == ["trained", "ext"]
    assert sum(content["objects"].values()) == 5
    one, other = content["models"]
    assert [c["branch"] for c in one["score_against_iou"]] == ["fc"]
    assert [c["branch"] for c in other["score_against_iou"]] == ["fc", "conv", "fused"]
    assert [c["branch"] for c in other["regressed_iou_against_iou"]] == ["fc", "conv", "fused"]
    assert [(c["scores"], c["boxes"]) for c in one["combinations"]] == [("fc", "conv")]
    assert len({(c["scores"], c["boxes"]) for c in other["combinations"]}) == 9
    assert (other["combinations"][0]["scores"], other["combinations"][0]["boxes"]) == ("fused", "conv")
    for model in content["models"]:
        for curve in model["score_against_iou"]:
            assert curve["bins"]["all"]["count"] == one["score_against_iou"][0]["bins"]["all"]["count"]
        for c in model["spatial_correlation"]:
            np.testing.assert_allclose(np.diag(c["matrix"]), 1, atol=1e-4)


def test_every_combination_measures_what_evaluate_measures_with_it(dataset, tmp_path):
    categories = open_dataset(dataset).read("val").categories
    path = untrained(tmp_path / "m.safetensors", "double-head-ext-tiny", categories)
    (model,) = analyze(path, dataset, budget=Budget(None, 3, 20), workers=0).models
    seen = set()
    for row in model.combinations:
        score, box = (None if name == heads.FUSED else name for name in (row.score_branch, row.box_branch))
        chosen = {"roi.score_branch": score, "roi.box_branch": box, "roi.box_fusion": "largest" if box else "average"}
        other = untrained(tmp_path / "other.safetensors", "double-head-ext-tiny", categories, **chosen)
        metrics = doublehead.evaluate(other, dataset, workers=0).metrics
        assert (row.ap, row.breakdown.ap50) == pytest.approx((metrics["AP"], metrics["AP50"]), abs=1e-6)
        seen.add(metrics["AP"])
    assert len(seen) > 3  # they differ


def test_all_models_are_asked_about_the_same_windows(dataset, trained, ext, monkeypatch):
    asked = {}

    def note(model, stage, place, boxes, labels, options):
        asked.setdefault(id(model), []).append(boxes)
        return heads.ask(model, stage, place, boxes, labels, options)

    monkeypatch.setattr(look, "ask", note)
    analyze([trained / "best.safetensors", ext], dataset, budget=Budget(None, 6, 40), workers=0)
    ours, theirs = asked.values()
    np.testing.assert_array_equal(np.concatenate(ours), np.concatenate(theirs))


def test_heads_are_asked_as_the_detector_asks_them(ext, monkeypatch):
    """Its own proposals, in pixels of images that are resized, get the scores and boxes they get in detection."""
    model = doublehead.load(ext, "cpu").model
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in ((90, 150), (130, 70))]
    stage = model.first_stage(images)
    monkeypatch.setattr(heads, "AT_ONCE", 7)
    for place, proposals in enumerate(stage.proposals):
        boxes = model.edges.rescale(proposals, stage.ratios[place])
        labels = np.arange(len(boxes)) % 6 + 1
        answers = heads.ask(model, stage, place, boxes.numpy(), labels)
        assert set(answers.scores) == {"fc", "conv", "fused"}
        levels, rows = [level[place : place + 1] for level in stage.levels], torch.arange(len(labels))
        scored = model.roi_heads.last.scored(levels, [proposals], model.options)
        np.testing.assert_allclose(answers.scores["fused"], scored.scores[0][rows, labels], atol=1e-4)
        wanted = scored.boxes([rows])[0][rows, labels]
        wanted = model.edges.rescale(model.edges.clip(wanted, stage.sizes[place]), stage.ratios[place])
        np.testing.assert_allclose(answers.boxes["conv"], wanted, atol=1e-2)


def test_scores_are_fused_as_the_options_say(ext, dataset):
    budget = Budget(None, 3, 20)
    means = {}
    for rule in ("average", "maximum"):
        (model,) = analyze(ext, dataset, budget=budget, workers=0, settings={"fusion": rule}).models
        means[rule] = {c.branch: np.nansum(c.bins["all"].mean * c.bins["all"].count) for c in model.scores}
    assert means["average"]["fc"] == means["maximum"]["fc"]
    assert means["average"]["fused"] < means["maximum"]["fused"]


def test_models_are_told_apart_by_file_run_or_number():
    assert heads.model_names(["runs/a/best.safetensors", "b.safetensors"]) == ["a", "b"]
    assert heads.model_names(["x/a.safetensors", "y/a.safetensors"]) == ["a (1)", "a (2)"]


def test_mistakes_are_answered_in_a_sentence(dataset, own_dataset, ext, tmp_path, command):
    report = ("-o", tmp_path / "report")
    assert "no split `holiday`" in command("analyze", ext, dataset, "--split", "holiday", *report).sentence
    foreign = untrained(tmp_path / "foreign.safetensors", "double-head-tiny", Categories(("cat",), (1,)))
    assert "of the data: use weights" in command("analyze", ext, foreign, dataset, *report).sentence
    assert "no such dataset" in command("analyze", ext, ext.with_name("data"), *report).sentence
    without_boxes(own_dataset, "val")
    assert "no annotated object" in command("analyze", ext, own_dataset, *report).sentence
    assert not (tmp_path / "report").exists()


def test_a_model_whose_boxes_are_averaged_says_so(dataset, tmp_path):
    """Each head is measured beside the average, which comes first."""
    categories = open_dataset(dataset).read("val").categories
    path = untrained(tmp_path / "m.safetensors", "double-head-fused-tiny", categories)
    (model,) = analyze(path, dataset, budget=Budget(None, 3, 20), workers=0).models
    assert [(row.score_branch, row.box_branch) for row in model.combinations] == [
        ("fc", heads.FUSED),
        ("fc", "fc"),
        ("fc", "conv"),
    ]
    metrics = doublehead.evaluate(path, dataset, workers=0).metrics
    assert model.combinations[0].ap == pytest.approx(metrics["AP"], abs=1e-6)
