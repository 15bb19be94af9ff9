"""Weighted box fusion against a hand-worked case and the authors' package; views and ensembles on top of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeing import Seeing, area, asked, painted

import doublehead
from doublehead.inference.fusion import Found, weighted_box_fusion
from doublehead.inference.views import detect_in_views
from doublehead.model.checkpoint import load_checkpoint, save_checkpoint


def found(*detections: tuple[float, int, list[float]]) -> Found:
    scores, labels, boxes = zip(*detections, strict=True) if detections else ((), (), ())
    values = {"scores": torch.tensor(scores), "labels": torch.tensor(labels, dtype=torch.int64)}
    return values | {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)}


def test_a_case_worked_by_hand() -> None:
    one = found((0.9, 1, [0, 0, 10, 10]), (0.5, 2, [0, 0, 10, 10]))
    other = found((0.6, 1, [0, 0, 10, 12]))
    fused = weighted_box_fusion([one, other])
    assert fused["labels"].tolist() == [1, 2]
    assert fused["scores"].tolist() == pytest.approx([0.75, 0.25])
    assert fused["boxes"].flatten().tolist() == pytest.approx([0, 0, 10, (9 + 7.2) / 1.5, 0, 0, 10, 10])
    alone = weighted_box_fusion([one, other], all_see=False)
    assert alone["scores"].tolist() == pytest.approx([0.75, 0.5])
    double = weighted_box_fusion([one, other], weights=[2, 1])
    assert double["scores"].tolist() == pytest.approx([(1.8 + 0.6) / 3, 1.0 / 3])
    assert double["boxes"][0].tolist() == pytest.approx([0, 0, 10, (18 + 7.2) / 2.4])


def opinions(seed: int) -> list[Found]:
    """Two to four opinions about the same dozen objects of three classes, with boxes of their own."""
    random = np.random.default_rng(seed)
    truth = random.uniform(0, 80, (12, 2))
    sides = random.uniform(5, 20, (12, 2))
    result = []
    for _ in range(random.integers(2, 5)):
        seen = np.concatenate([np.flatnonzero(random.random(12) < 0.8), random.integers(0, 12, 6)])
        low = truth[seen] + random.normal(0, 1, (len(seen), 2))
        boxes = np.concatenate([low, low + sides[seen] * random.uniform(0.8, 1.2, (len(seen), 2))], axis=1).clip(0, 100)
        scores = np.sort(random.uniform(0.01, 1, len(seen)))[::-1].copy()
        labels = np.where(random.random(len(seen)) < 0.9, seen % 3, random.integers(0, 3, len(seen))) + 1
        values = (boxes.astype(np.float32), scores.astype(np.float32), labels)
        result.append(dict(zip(("boxes", "scores", "labels"), map(torch.from_numpy, values), strict=True)))
    return result


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_it_equals_the_authors_package(seed: int, weighted: bool) -> None:
    package = pytest.importorskip("ensemble_boxes")
    given = opinions(seed)
    weights = np.random.default_rng(seed).uniform(0.5, 3, len(given)).tolist() if weighted else None
    iou = (0.55, 0.4, 0.7)[seed % 3]
    ours = weighted_box_fusion(given, iou, weights)
    boxes, scores, labels = package.weighted_boxes_fusion(
        [(one["boxes"].double() / 100).tolist() for one in given],
        [one["scores"].tolist() for one in given],
        [one["labels"].tolist() for one in given],
        weights=weights,
        iou_thr=iou,
    )
    theirs = sorted(zip(labels, scores.clip(max=1), *(100 * boxes.T), strict=True))
    values = (ours["labels"], ours["scores"], *ours["boxes"].T)
    mine = sorted(zip(*(value.double().tolist() for value in values), strict=True))
    assert len(mine) == len(theirs) > 5
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-4)
    assert (ours["scores"][:-1] >= ours["scores"][1:]).all()


def test_nothing_fused_is_nothing() -> None:
    assert {name: value.shape for name, value in weighted_box_fusion([found(), found()]).items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
    }


# Views


def test_views_are_brought_back_and_agree() -> None:
    boxes = [(3, 5, 40, 20), (50, 10, 99, 60)]
    model = Seeing(list(map(area, boxes)))
    image = painted(64, 101, boxes)
    (seen,) = detect_in_views(model.detect, [image], asked(flip=True, scales=[0.5, 1, 2]))
    assert len(model.batches) == 6
    assert sorted(map(tuple, seen["boxes"].round().int().tolist())) == boxes
    assert seen["scores"].tolist() == pytest.approx([0.9, 0.9])


def test_views_change_the_size_and_direction_of_the_input(trained: Path, dataset: Path) -> None:
    plain = doublehead.load(trained / "best.safetensors", "cpu")
    image = str(next((dataset / "val").iterdir()))
    sizes: list[tuple[int, ...]] = []
    plain.model.backbone.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[-2:])))
    plain.with_options(flip=True, scales=[0.5, 1]).predict(image)
    assert sizes == [(32, 64), (64, 96), (32, 64), (64, 96)]
    assert plain.with_options(scales=[0.5]).predict(image) == plain.with_options(short_side=32, long_side=48).predict(
        image
    )
    assert plain.with_options(flip=False, scales=[1]).predict(image) == plain.predict(image)


def test_fused_detections_keep_to_the_options(trained: Path, dataset: Path) -> None:
    model = doublehead.load(trained / "best.safetensors", "cpu", settings={"flip": True, "scales": [0.75, 1, 1.5]})
    images = [str(path) for path in sorted((dataset / "val").iterdir())]
    strict = model.with_options(score_threshold=0.05, detections=4)
    results = strict.predict(images)
    assert sum(map(len, results))
    assert all(len(one) <= 4 and (one.scores > 0.05).all() for one in results)
    alone = strict.predict(images[0])
    assert len(alone) == len(results[0])
    np.testing.assert_allclose(alone.boxes, results[0].boxes, atol=0.01)


@pytest.mark.parametrize("scales", [[], [0], [-1], [0.1], [1e9], "large"])
def test_scales_out_of_bounds_are_named(trained: Path, scales: Any) -> None:
    with pytest.raises(doublehead.DoubleheadError, match="scales"):
        doublehead.load(trained / "best.safetensors", "cpu", settings={"scales": scales})


# Ensembles


def renamed(weights: Path, path: Path, order: list[int], rename: dict[str, str] | None = None) -> Path:
    """The same model with its classes in another order, and other names for some."""
    checkpoint = load_checkpoint(weights)
    categories = checkpoint.categories
    rows = [0, *(place + 1 for place in order)]
    tensors = dict(checkpoint.weights)
    for name, value in tensors.items():
        if value.shape[:1] == (len(rows),) and "classifier" in name:
            tensors[name] = value[rows].contiguous()
        if value.shape[:1] == (4 * len(rows),) and "regressor" in name:
            tensors[name] = value.unflatten(0, (-1, 4))[rows].flatten(0, 1).contiguous()
    names = tuple((rename or {}).get(categories.names[place], categories.names[place]) for place in order)
    changed = type(categories)(names, tuple(range(1, len(names) + 1)))
    save_checkpoint(path, checkpoint.config, changed, tensors, {})
    return path


@pytest.fixture
def weights(trained: Path) -> Path:
    return trained / "best.safetensors"


@pytest.fixture
def images(dataset: Path) -> list[str]:
    return [str(path) for path in sorted((dataset / "val").iterdir())]


def test_models_whose_classes_have_another_order_agree(weights: Path, images: list[str], tmp_path: Path) -> None:
    other = renamed(weights, tmp_path / "other.safetensors", [3, 1, 0, 5, 2, 4])
    twice, both = doublehead.load([weights, weights], "cpu"), doublehead.load([weights, other], "cpu")
    assert both.categories == doublehead.load(weights, "cpu").categories
    for one, two in zip(twice.predict(images), both.predict(images), strict=True):
        assert len(one)
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)
        assert one.class_names == two.class_names
    name = both.categories.names[3]
    assert {n for one in both.with_options(classes=[name]).predict(images) for n in one.class_names} <= {name}


def test_options_go_to_each_model(weights: Path, images: list[str], tmp_path: Path) -> None:
    both = doublehead.load([weights, weights], "cpu", settings={"model_weights": [2, 1], "short_side": 32})
    assert both.options.model_weights == (2, 1)
    asked = both.with_options(detections=2, tiles=64)
    assert [(m.options.short_side, m.options.tiles) for m in asked.members] == [(32, 64), (32, 64)]
    assert asked.options.model_weights == (2, 1)
    assert max(len(one) for one in asked.predict(images)) == 2
    with pytest.raises(doublehead.DoubleheadError, match="model_weights"):
        both.with_options(model_weights=[1, 2, 3])
    with pytest.raises(doublehead.DoubleheadError, match="model_weights"):
        doublehead.load(weights, "cpu", settings={"model_weights": [1]})
    with pytest.raises(doublehead.DoubleheadError, match="ensemble"):
        _ = both.model


def test_models_of_other_classes_are_refused(weights: Path, tmp_path: Path) -> None:
    name = load_checkpoint(weights).categories.names[0]
    other = renamed(weights, tmp_path / "other.safetensors", [0, 1, 2, 3, 4, 5], {name: "zebra"})
    with pytest.raises(doublehead.DoubleheadError, match=r"other\.safetensors.*zebra|other\.safetensors.*" + name):
        doublehead.load([weights, other], "cpu")


def test_commands_fuse_models(weights: Path, dataset: Path, tmp_path: Path, command: Any) -> None:
    other = renamed(weights, tmp_path / "other.safetensors", [3, 1, 0, 5, 2, 4])
    low = ("--score", 0, "--device", "cpu")
    for out, models in (("a", (weights,)), ("b", (weights, other))):
        assert command("predict", *models, dataset / "test", "-o", tmp_path / out, *low).code == 0
    many, fused = (json.loads((tmp_path / out / "predictions.json").read_text()) for out in "ab")
    assert many["images"] == fused["images"]
    assert many["annotations"] != fused["annotations"]
    assert "images" in command("predict", weights, other, *low).sentence
    words = ("evaluate", weights, other, dataset, "-o", tmp_path / "c", "--device", "cpu")
    assert command(*words).code == 2  # one by one, the other's class ids are not the data's
    assert command(*words, "--ensemble").code == 0
    assert json.loads((tmp_path / "c" / "metrics.json").read_text())["images"] == 4
