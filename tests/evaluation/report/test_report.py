"""The report as a person opens it: files, page, comparison; and calibrated weights."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.evaluation.calibrate import calibrate, fit
from doublehead.evaluation.report.pictures import CROPS, OF_CELL
from doublehead.evaluation.report.report import write_report
from doublehead.inference.predictor import decision_threshold
from doublehead.model.checkpoint import load_checkpoint
from doublehead.model.postprocess import fuse
from doublehead.training.recipes import resolve

FILES = ["classes", "confusion", "groups", "images", "precision_recall", "reliability", "thresholds"]


@pytest.fixture(scope="module")
def weights(trained):
    return trained / "best.safetensors"


@pytest.fixture(scope="module")
def evaluation(weights, dataset):
    return doublehead.evaluate(weights, dataset, "train", device="cpu", workers=0)


@pytest.fixture(scope="module")
def folder(evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report([evaluation], ["<shapes>"], folder)
    return folder


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_number_is_in_files_beside_the_page(folder, evaluation):
    names = {f"{name}.csv" for name in FILES} | {"index.html", "report.json", "metrics.json", "predictions.json"}
    assert {file.name for file in folder.iterdir()} == names | {"precision_recall.png"}
    report = json.loads((folder / "report.json").read_text())
    assert report["figures"]["AP"] == pytest.approx(evaluation.metrics["AP"])
    low, high = report["intervals"]["AP"]
    assert low <= report["figures"]["AP"] <= high
    *classes, together = rows(folder / "classes.csv")
    assert [row["class"] for row in classes] == list(evaluation.split.categories.names)
    assert int(together["true"]) + int(together["missed"]) == evaluation.metrics.boxes
    assert sum(int(row["objects"]) for row in rows(folder / "images.csv")) == evaluation.metrics.boxes
    matrix = np.array(report["confusion"]["matrix"])
    assert matrix[:-1].sum() == evaluation.metrics.boxes


def test_the_page_needs_no_other_file_and_no_network(folder):
    html = (folder / "index.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", html)
    assert "http" not in re.sub(r"data:[^\"']+", "", html)
    assert "&lt;shapes&gt;" in html
    assert "<shapes>" not in html


def test_the_page_in_a_browser(folder):
    """Cells lead to crops by keyboard; the slider hides what scores less; nothing is fetched; it fits a phone."""
    with sync_playwright() as play:
        try:
            browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        except Exception as error:
            pytest.skip(f"no chromium: {error}")
        page = browser.new_page(viewport={"width": 380, "height": 800})
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((folder / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        link = page.locator(".matrix a").first
        link.focus()
        page.keyboard.press("Enter")
        assert page.locator(".crops section:target img").count() > 0
        page.locator("#score").focus()
        page.keyboard.press("Home")
        assert page.locator(".seen .off").count() == 0
        page.keyboard.press("End")
        assert page.locator(".seen g:not(.object):not(.off)").count() == 0
        assert page.locator("#said").inner_text().startswith("1.00")
        assert not errors
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        browser.close()


def test_crops_are_bounded(folder, monkeypatch, evaluation, tmp_path):
    html = (folder / "index.html").read_text()
    sections = re.findall(r"<section id=\"cell-.*?</section>", html, re.DOTALL)
    assert sections
    assert all(section.count("<img") <= OF_CELL for section in sections)
    assert sum(section.count("<img") for section in sections) <= CROPS
    monkeypatch.setattr("doublehead.evaluation.report.pictures.CROPS", 3)
    write_report([evaluation], ["few"], tmp_path)
    assert (tmp_path / "index.html").read_text().count('loading="lazy"') == 3


def test_several_weights_are_compared(weights, dataset, tmp_path, command):
    words = ("--split", "val", "-o", tmp_path, "--device", "cpu")
    assert command("evaluate", weights, weights.with_name("last.safetensors"), dataset, *words).code == 0
    first, second = json.loads((tmp_path / "comparison.json").read_text())
    assert first["AP_gain"] == first["AP_gain_low"] == 0
    assert second["AP"] - first["AP"] == pytest.approx(second["AP_gain"])
    html = (tmp_path / "index.html").read_text()
    for link in re.findall(r"href=\"([^#\"]+)\"", html):
        assert (tmp_path / link).is_file()
        assert 'href="../index.html"' in (tmp_path / link).read_text()


def test_training_leaves_the_best_threshold_in_its_weights(weights, dataset, tmp_path, command):
    config = load_checkpoint(weights).config
    measured = doublehead.evaluate(weights, dataset, "val", device="cpu", workers=0)
    assert measured.threshold == config.roi.decision_threshold is not None
    assert measured.metrics["best_threshold"] == pytest.approx(measured.threshold)
    images = dataset / "test"
    outcome = command("predict", weights, images, "-o", tmp_path / "own", "--device", "cpu")
    assert f"detections with a score of at least {measured.threshold:.2f}" in outcome.err
    other = command("predict", weights, images, "-o", tmp_path / "said", "--device", "cpu", "--score", 0)
    assert "with a score of at least" not in other.err
    changed = command(
        *("predict", weights, images, "-o", tmp_path / "set", "--device", "cpu", "--set", "decision_threshold=0.9")
    )
    assert "with a score of at least 0.90" in changed.err
    scores = {
        name: [a["score"] for a in json.loads((tmp_path / name / "predictions.json").read_text())["annotations"]]
        for name in ("own", "said", "set")
    }
    assert scores["own"] == [score for score in scores["said"] if score >= measured.threshold]
    assert all(score >= 0.9 for score in scores["set"])
    assert decision_threshold(weights) == measured.threshold
    with pytest.raises(DoubleheadError, match="decision_threshold"):
        decision_threshold(weights, {"decision_threshold": "high"})


def test_weights_without_a_threshold_are_told_how_to_get_one(weights, dataset, tmp_path, command):
    plain = tmp_path / "plain.safetensors"
    assert command("convert", weights, plain, "--set", "model.roi.decision_threshold=null").code == 0
    said = command("evaluate", plain, dataset, "-o", tmp_path / "e", "--device", "cpu").out.replace("\n", " ")
    (line,) = re.findall(r"doublehead (convert \S+ \S+ --set \S+)", said)
    assert command(*line.split()).code == 0
    best = json.loads((tmp_path / "e" / "metrics.json").read_text())["best_threshold"]
    assert decision_threshold(tmp_path / "plain-threshold.safetensors") == pytest.approx(best, rel=1e-3)


def test_training_from_fitted_weights_starts_unfitted(weights):
    assert load_checkpoint(weights).config.roi.decision_threshold is not None
    assert resolve(model=str(weights)).model.roi.decision_threshold is None


@pytest.mark.parametrize("fusion", ["complementary", "average"])
@pytest.mark.parametrize("wanted", [[(1.7, 0.0)], [(0.6, 1.5)], [(2.0, 1.0), (0.7, -0.5)]])
def test_known_temperatures_and_offsets_are_recovered(wanted, fusion):
    """From detections that are right as often as their scores under these say."""
    torch.manual_seed(0)
    count = 60_000
    logits = [3 * torch.randn(count, 5, dtype=torch.float64) for _ in wanted]
    labels = torch.randint(1, 5, (count,))
    shifted = [each + torch.tensor([offset, 0, 0, 0, 0]) for each, (_, offset) in zip(logits, wanted, strict=True)]
    scores = fuse([(each / t).softmax(1) for each, (t, _) in zip(shifted, wanted, strict=True)], fusion)
    right = torch.rand(count) < scores[torch.arange(count), labels]
    for found, (temperature, offset) in zip(fit(logits, labels, right, fusion), wanted, strict=True):
        assert found.temperature == pytest.approx(temperature, rel=0.08)
        assert found.background_offset == pytest.approx(offset, abs=0.15)


def test_calibrated_weights_score_otherwise_and_leave_ap_as_it_is(
    weights, dataset, evaluation, tmp_path, command, monkeypatch
):
    monkeypatch.setattr("doublehead.evaluation.calibrate.FEWEST", 4)  # the small model finds next to nothing
    new = tmp_path / "new.safetensors"
    before = weights.read_bytes()
    outcome = command("calibrate", weights, dataset, "--split", "train", "-o", new, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert weights.read_bytes() == before
    assert "exists already" in command("calibrate", weights, dataset, "-o", new).sentence
    (head,) = [branch for branch in load_checkpoint(new).config.branches if branch.classify]
    said = f"fc: temperature {head.temperature:.3f}, background offset {head.background_offset:.3f}"
    assert said in outcome.out
    assert head.calibrated
    found = doublehead.evaluate(new, dataset, "train", device="cpu", workers=0)
    assert found.metrics.totals == pytest.approx(evaluation.metrics.totals, nan_ok=True)
    assert found.results == evaluation.results
    assert found.decided != found.results
    write_report([found], ["new"], tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["calibration_error_before"] is not None
    image = Image.open(next((dataset / "test").iterdir()))
    raw = doublehead.load(new, "cpu", settings={"calibrated": False}).predict(image)
    assert raw == doublehead.load(weights, "cpu").predict(image)
    assert doublehead.load(new, "cpu").predict(image) != raw


def test_too_few_detections_to_calibrate_are_told(weights, dataset, tmp_path):
    with pytest.raises(DoubleheadError, match="too few to calibrate"):
        calibrate_strict(weights, dataset, tmp_path / "c.safetensors")


def calibrate_strict(weights, dataset, output):
    from doublehead.model.checkpoint import save_checkpoint

    checkpoint = load_checkpoint(weights)
    roi = checkpoint.config.roi.model_copy(update={"score_threshold": 0.999})
    strict = output.with_name("strict.safetensors")
    config = checkpoint.config.model_copy(update={"roi": roi})
    save_checkpoint(strict, config, checkpoint.categories, checkpoint.weights, checkpoint.notes)
    return calibrate(strict, dataset, "val", output, device="cpu", workers=0)


def test_a_model_that_finds_nothing_has_a_report(weights, dataset, tmp_path):
    nothing = doublehead.evaluate(weights, dataset, "val", device="cpu", workers=0, settings={"score_threshold": 0.999})
    assert not nothing.results
    write_report([nothing], ["nothing"], tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["best_threshold"]["score"] is None
    assert np.array(report["confusion"]["matrix"])[:-1, -1].sum() == nothing.metrics.boxes
