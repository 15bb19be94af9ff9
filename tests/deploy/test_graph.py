"""The function that is exported, still in PyTorch: the same detections as the detector's, for every variant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ready_models import OTHERS_CONVENTIONS, ready_model

from doublehead.deploy.graph import Graph, StaticGraph
from doublehead.deploy.parity import RawDetections, compare
from doublehead.inference.canvas import Canvas
from doublehead.model.optimize import for_inference
from doublehead.model.variants import VARIANTS

IMAGES = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((96, 128), (300, 211), (40, 250))]


MODELS = [
    *((name, {}) for name in VARIANTS),
    ("double-head-ext", OTHERS_CONVENTIONS),
    *((f"cascade-{name}", {}) for name in ("single-fc", "double-head")),
    ("cascade-double-head-ext", OTHERS_CONVENTIONS | {"cascade": {"convention": "detectron2", "early": "narrow"}}),
]


@pytest.mark.parametrize(("variant", "changes"), MODELS)
def test_finds_what_the_detector_finds(variant: str, changes: dict[str, Any]) -> None:
    model = ready_model(variant, **changes)
    ready = for_inference(model, torch.device("cpu"))
    parity = compare([ready.detect([image])[0] for image in IMAGES], Graph(model, 1000).detect(IMAGES))
    assert parity.detections > 20
    assert parity.matched == parity.detections
    assert parity.difference < 1e-5


def test_a_head_that_only_regresses_sees_the_best_owners_alone() -> None:
    model = ready_model("double-head", roi={"score_threshold": 0.5})
    seen: list[int] = []
    for owners in (1000, 10):
        graph = Graph(model, owners)
        conv = graph.model.roi_heads.last.branches[1]
        conv.register_forward_hook(lambda module, given, _: seen.append(len(given[0])))
        best = graph.detect(IMAGES)[0]["scores"][0]
        assert best == Graph(model, 1000).detect(IMAGES)[0]["scores"][0]
    assert seen[3:] == [10, 10, 10]
    assert all(10 < count < 300 for count in seen[:3]), seen


@pytest.mark.parametrize(("variant", "changes"), MODELS)
def test_with_static_shapes_it_finds_what_the_detector_finds(variant: str, changes: dict[str, Any]) -> None:
    model = ready_model(variant, **(changes | {"roi": changes.get("roi", {}) | {"score_floor": 0.0}}))
    ready, images = for_inference(model, torch.device("cpu")), IMAGES[:1] * 2
    canvas = Canvas.of_images(*images[0].shape[-2:], model.config.input, 32, batch=3)
    inputs, ratios = canvas.fill(images, model.config.input)
    results = zip(*StaticGraph(model, 1000, canvas)(*(torch.from_numpy(v) for v in inputs.values())), strict=True)
    found: list[RawDetections] = []
    for (boxes, scores, labels), ratio in zip(results, ratios, strict=False):
        there = scores > 0
        boxes = ready.edges.rescale(boxes[there], ratio)
        found.append({"boxes": boxes, "scores": scores[there], "labels": labels[there]})
    parity = compare([ready.detect([image])[0] for image in images], found)
    assert parity.detections > 20
    assert parity.matched == parity.detections
    assert parity.difference < 1e-5
