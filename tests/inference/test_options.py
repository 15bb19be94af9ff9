"""Inference options: the same names from Python and from the command line, and never a state of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import doublehead
from doublehead.config import InferenceOptions, inference_options
from doublehead.data.dataset import open_dataset
from doublehead.evaluation.analysis import analyze, look
from doublehead.evaluation.budget import Budget
from doublehead.evaluation.coco import evaluate_detections
from doublehead.model.checkpoint import load_checkpoint
from doublehead.model.interop.convert import convert
from doublehead.model.presets import preset
from doublehead.training import validation
from small import SMALL


@pytest.fixture
def weights(trained: Path) -> Path:
    return trained / "best.safetensors"


@pytest.fixture
def images(dataset: Path) -> list[Any]:
    return [str(record.path) for record in open_dataset(dataset).read("test").records]


def test_defaults_are_those_of_the_model(weights: Path) -> None:
    config = load_checkpoint(weights).config
    options = doublehead.load(weights, "cpu").options
    assert options.score_threshold == config.roi.score_threshold == 0.01
    assert (options.short_side, options.long_side) == (config.input.short_side, config.input.long_side)
    assert (options.precision, options.classes) == ("fp32", None)


@pytest.mark.parametrize("prefix", ["", "roi.", "model.roi."])
def test_an_option_has_its_name_or_its_key_in_the_model(weights: Path, images: list[Any], prefix: str) -> None:
    usual = doublehead.load(weights, "cpu").predict(images)
    limit = sorted(float(score) for found in usual for score in found.scores)[len(usual)]
    strict = doublehead.load(weights, "cpu", settings={f"{prefix}score_threshold": limit}).predict(images)
    assert 0 < sum(map(len, strict)) < sum(map(len, usual))
    assert all((found.scores > limit).all() for found in strict)


def test_with_options_shares_the_weights_and_changes_nothing(weights: Path, images: list[Any]) -> None:
    usual = doublehead.load(weights, "cpu")
    before = usual.predict(images)
    few = usual.with_options(detections=2, nms_iou=0.9)
    assert few.model is usual.model
    assert all(len(found) <= 2 for found in few.predict(images))
    assert usual.predict(images) == before
    assert (
        few.with_options(detections=usual.options.detections, nms_iou=usual.options.nms_iou).predict(images) == before
    )
    with pytest.raises(ValueError, match="frozen"):
        usual.options.detections = 3  # type: ignore[misc]


def test_named_classes_alone_are_found(weights: Path, images: list[Any]) -> None:
    usual = doublehead.load(weights, "cpu")
    name = usual.predict(images)[0].class_names[0]
    for found in usual.with_options(classes=[name], score_threshold=0).predict(images):
        assert set(found.class_names) <= {name}
    with pytest.raises(doublehead.DoubleheadError, match="no class `zebra`"):
        usual.with_options(classes=["zebra"])


def test_the_input_size_is_an_option(weights: Path, images: list[Any]) -> None:
    usual = doublehead.load(weights, "cpu")
    small = usual.with_options(short_side=32, long_side=48)
    seen: list[tuple[int, ...]] = []
    usual.model.backbone.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[-2:])))
    small.predict(images[0])
    usual.predict(images[0])
    assert seen == [(32, 64), (64, 96)]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"score": 0.5}, "score_threshold"),
        ({"score_threshold": 7}, "score_threshold"),
        ({"score_threshold": float("nan")}, "score_threshold"),
        ({"detections": 0}, "detections"),
        ({"box_branch": "fc"}, "box_branch"),
        ({"classes": "unicorn"}, "unicorn"),
        ({"classes": 5}, "`5`"),
        ({"model.backbone.name": "resnet50"}, "backbone.name"),
        ({"train.lr": 1}, "train.lr"),
    ],
)
def test_mistakes_are_named(weights: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(doublehead.DoubleheadError, match=named):
        doublehead.load(weights, "cpu", settings=settings)


def test_every_option_is_in_the_model_or_of_the_moment() -> None:
    options = inference_options(preset("double-head-ext-r50"))
    assert set(options.model_dump()) == set(InferenceOptions.model_fields)
    assert options.fusion == "complementary"


def test_null_asks_for_what_it_means(weights: Path, tmp_path: Path) -> None:
    """Of a model whose default is one branch: all of them, from the start and later."""
    path = tmp_path / "one.safetensors"
    convert(weights, path, settings={"model.roi.score_branch": "fc"})
    usual = doublehead.load(path, "cpu")
    assert usual.options.score_branch == "fc"
    assert doublehead.load(path, "cpu", settings={"score_branch": None}).options.score_branch is None
    assert usual.with_options(score_branch=None).options.score_branch is None
    some = usual.with_options(classes=list(usual.categories.names[:1]))
    assert (some.options.classes, some.with_options(classes=None).options.classes) == ((1,), None)
    with pytest.raises(doublehead.DoubleheadError, match="detections"):
        usual.with_options(detections=None)


def test_a_class_is_named_however_its_name_looks(weights: Path) -> None:
    """Digits, as YAML reads them; and a name that two ids share."""
    model = doublehead.load(weights, "cpu").model
    config = model.config
    names = ("5", "dog", "dog")
    assert inference_options(config, {"classes": 5}, names).classes == (1,)
    assert inference_options(config, {"classes": ["dog"]}, names).classes == (2, 3)


def test_precision_is_chosen_with_the_weights(weights: Path, images: list[Any]) -> None:
    plain, half = doublehead.load(weights, "cpu"), doublehead.load(weights, "cpu", settings={"precision": "bf16"})
    layers = [m for m in half.model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert {p.dtype for m in layers for p in m.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in plain.model.parameters()} == {torch.float32}
    with pytest.raises(doublehead.DoubleheadError, match="precision"):
        plain.with_options(precision="bf16")


def test_weights_cast_once_compute_what_autocast_computes(weights: Path, images: list[Any]) -> None:
    """Autocast casts weights that do not learn again for every call: the same numbers."""
    once, each_time = doublehead.load(weights, "cpu", "bf16"), doublehead.load(weights, "cpu")
    each_time.precision = torch.bfloat16
    assert once.predict(images) == each_time.predict(images)


# The command line


def predictions(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "predictions.json").read_text())["annotations"]


def test_commands_take_options(weights: Path, dataset: Path, tmp_path: Path, command: Any) -> None:
    low = ("--score", 0, "--device", "cpu")
    assert command("predict", weights, dataset / "test", "-o", tmp_path / "a", *low).code == 0
    few = ("--set", "detections=1", "--set", "model.roi.score_threshold=0.02")
    assert command("predict", weights, dataset / "test", "-o", tmp_path / "b", *low, *few).code == 0
    assert len(predictions(tmp_path / "b")) <= 3 < len(predictions(tmp_path / "a"))
    outcome = command("evaluate", weights, dataset, "-o", tmp_path / "c", "--device", "cpu", "--set", "detections=1")
    assert outcome.code == 0, outcome.err
    assert len(json.loads((tmp_path / "c" / "predictions.json").read_text())) <= 4
    outcome = command("evaluate", weights, dataset, "-o", tmp_path / "d", "--set", "detection=1")
    assert "`detection`" in outcome.sentence


def test_convert_writes_other_defaults_into_a_checkpoint(weights: Path, tmp_path: Path, command: Any) -> None:
    words = ("--set", "model.roi.score_threshold=0.4", "--set", "model.input.short_side=48")
    outcome = command("convert", weights, tmp_path / "b.safetensors", *words)
    assert outcome.code == 0, outcome.err
    before, after = load_checkpoint(weights), load_checkpoint(tmp_path / "b.safetensors")
    assert (after.config.roi.score_threshold, after.config.input.short_side) == (0.4, 48)
    assert after.weights.keys() == before.weights.keys()
    assert doublehead.load(tmp_path / "b.safetensors", "cpu").options.score_threshold == 0.4
    for wrong in ("model.fpn.channels=32", "model.backbone.name=resnet34", "model.roi.nms=1"):
        outcome = command("convert", weights, tmp_path / "c.safetensors", "--set", wrong)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err
        assert not (tmp_path / "c.safetensors").exists()


def test_measuring_follows_the_number_of_detections(weights: Path, dataset: Path) -> None:
    many = doublehead.evaluate(weights, dataset, device="cpu", settings={"detections": 300, "score_threshold": 0})
    assert many.metrics.most == 300
    assert doublehead.evaluate(weights, dataset, device="cpu").metrics.most == 100


@pytest.fixture
def one_class(dataset: Path, tmp_path: Path) -> Path:
    """The dataset with objects of its last class alone."""
    content = json.loads((dataset / "annotations" / "instances_val.json").read_text())
    kept = content["categories"][-1]
    content["categories"] = [kept]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == kept["id"]]
    (tmp_path / "one.json").write_text(json.dumps(content))
    split = {"annotations": str(tmp_path / "one.json"), "images": str(dataset / "val")}
    layout = {"format": "coco", "root": str(dataset), "splits": {"val": split}}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(layout))
    return tmp_path / "one.yaml"


@pytest.mark.parametrize("asked", [None, 2])
def test_classes_that_the_data_lacks_take_no_place(weights: Path, one_class: Path, asked: int | None) -> None:
    """With a single detection per image, a class that the data does not have would often be the one."""
    names = load_checkpoint(weights).categories.names
    settings: dict[str, Any] = {"detections": 1, "score_threshold": 0.0}
    if asked:
        settings["classes"] = list(names[-asked:])
    found = doublehead.evaluate(weights, one_class, device="cpu", settings=settings)
    (kept,) = open_dataset(one_class).read("val").categories.ids
    assert len(names) > 1
    assert [result["category_id"] for result in found.results] == [kept] * found.metrics.images


def test_classes_that_the_data_lacks_take_no_place_in_an_analysis(weights: Path, one_class: Path) -> None:
    settings = {"detections": 1, "score_threshold": 0.0}
    (model,) = analyze(
        weights, one_class, budget=Budget(None, 2, 20), workers=0, device="cpu", settings=settings
    ).models
    (own,) = model.combinations
    assert [len(image.scores) for image in own.images] == [1] * len(own.images)


# Whoever measures or looks into a model asks as its options say


def test_training_and_analysis_measure_as_many_detections_as_the_model_gives(
    dataset: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def note(*args: Any) -> Any:
        metrics = evaluate_detections(*args)
        counted.append(metrics.most)
        return metrics

    monkeypatch.setattr(validation, "evaluate_detections", note)
    monkeypatch.setattr(look, "evaluate_detections", note)
    doublehead.train(
        dataset, "double-head-tiny", tmp_path / "run", settings=SMALL | {"train.steps": 1, "model.roi.detections": 300}
    )
    analyze(weights, dataset, budget=Budget(None, 2, 20), workers=0, device="cpu", settings={"detections": 200})
    assert counted == [300, 200]


def test_an_analysis_in_16_bits(weights: Path, dataset: Path) -> None:
    found = [
        analyze(weights, dataset, budget=Budget(None, 2, 20), workers=0, device="cpu", settings={"precision": p}).models
        for p in ("fp32", "bf16")
    ]
    (full,), (half,) = found
    for one, other in zip(full.scores, half.scores, strict=True):
        assert (one.branch, one.bins["all"].count.tolist()) == (other.branch, other.bins["all"].count.tolist())
    assert [c.ap for c in half.combinations] == pytest.approx([c.ap for c in full.combinations], abs=0.05)


def test_bulk_parts_of_other_options_are_not_mixed(weights: Path, dataset: Path, tmp_path: Path, command: Any) -> None:
    pytest.importorskip("pyarrow")
    words = ("predict", weights, dataset / "test", "-o", tmp_path / "out", "--format", "parquet", "--device", "cpu")
    assert command(*words, "--set", "roi.nms_iou=0.3").code == 0
    assert command(*words, "--set", "nms_iou=0.3").code == 0  # the same by another name
    assert "nms_iou" in command(*words, "--set", "nms_iou=0.7").sentence
    assert "nms_iou" in command(*words).sentence


def test_bulk_parts_from_before_there_were_options_go_on(
    weights: Path, dataset: Path, tmp_path: Path, command: Any
) -> None:
    pytest.importorskip("pyarrow")
    words = ("predict", weights, dataset / "test", "-o", tmp_path / "out", "--format", "parquet", "--device", "cpu")
    assert command(*words).code == 0
    plan = tmp_path / "out" / "_plan.json"
    content = json.loads(plan.read_text())
    content.pop("settings", None)
    plan.write_text(json.dumps(content))
    assert command(*words).code == 0
    assert "nms_iou" in command(*words, "--set", "nms_iou=0.7").sentence


@pytest.mark.parametrize("how", ["linear", "gaussian"])
def test_soft_nms_keeps_what_hard_nms_drops_with_a_lower_score(weights: Path, images: list[Any], how: str) -> None:
    hard = doublehead.load(weights, "cpu", settings={"detections": 1000})
    soft = hard.with_options(nms=how)
    for one, other in zip(hard.predict(images), soft.predict(images), strict=True):
        assert len(other) >= len(one)
        assert (other.scores[1:] <= other.scores[:-1]).all()
        assert (other.scores > hard.options.score_threshold).all()
        assert np.array_equal(other[:1].boxes, one[:1].boxes)


def test_classes_have_thresholds_of_their_own(weights: Path, images: list[Any], dataset: Path) -> None:
    usual = doublehead.load(weights, "cpu", settings={"detections": 1000})
    before = usual.predict(images)
    name, limit = before[0].class_names[0], float(np.median(before[0].scores))
    strict = usual.with_options(class_thresholds={name: limit})
    for one, other in zip(before, strict.predict(images), strict=True):
        assert other == one[[n != name or score > limit for n, score in zip(one.class_names, one.scores, strict=True)]]
    flipped = strict.with_options(flip=True, scales=[1.0, 1.5]).predict(images)
    assert all((found.where(name).scores > limit).all() for found in flipped)
    for wrong in ({"zebra": 0.5}, {name: 2.0}, [0.5], {name: "high"}):
        with pytest.raises(doublehead.DoubleheadError, match=r"zebra|class_thresholds"):
            usual.with_options(class_thresholds=wrong)


def test_soft_nms_and_class_thresholds_from_the_command_line(
    weights: Path, dataset: Path, tmp_path: Path, command: Any
) -> None:
    name = doublehead.load(weights, "cpu").categories.names[0]
    flags = ["--set", "nms=gaussian", "--set", f"class_thresholds={{{name}: 1.0}}"]
    assert command("evaluate", weights, dataset, *flags, "-o", tmp_path / "report").code == 0
    found = json.loads((tmp_path / "report" / "predictions.json").read_text())
    assert found
    assert 7 not in {one["category_id"] for one in found}
