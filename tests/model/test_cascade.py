"""Cascades: one stage is the plain detector; stages learn and detect by the published conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_models import small_config, small_model, target
from torch import Tensor, nn

from doublehead.common.categories import Categories
from doublehead.config import ModelConfig, inference_options, override
from doublehead.model.box_head import box_loss
from doublehead.model.checkpoint import adopt, load_model, save_checkpoint
from doublehead.model.cost import cost
from doublehead.model.detector import Detector
from doublehead.model.optimize import for_inference
from doublehead.model.presets import CASCADES, SIZES, preset, preset_values
from doublehead.model.stages import CONVENTIONS, EARLY
from doublehead.model.variants import VARIANTS

IMAGES = [
    torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
    torch.randint(0, 256, (3, 128, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)),
]
TARGETS = [target([[10, 10, 60, 70], [5, 20, 30, 40]], [1, 3]), target([[20, 30, 80, 120]], [2])]
LEVELS = [torch.randn(2, 16, 96 // s, 128 // s, generator=torch.Generator().manual_seed(s)) for s in (4, 8, 16, 32)]
SIZES_OF_LEVELS = [(96, 128)] * 2


def cascade(variant: str = "double-head", stages: int = 3, **changes: Any) -> Detector:
    """A small cascade of any row of VARIANTS, with seeded weights that tell scores and boxes apart."""
    roi = {"class_agnostic": True} | changes.pop("roi", {})
    usual = CONVENTIONS[changes.get("cascade", {}).get("convention", "mmdetection")]
    own = {"early": "fc", "ious": usual["ious"][:stages]} | changes.pop("cascade", {})
    model = small_model(variant, cascade=own, roi=roi, **changes)
    torch.manual_seed(3)
    for branch in model.roi_heads:
        for layer in (branch.classifier, branch.regressor):
            if layer is not None:
                nn.init.normal_(layer.weight, std=1.0 if layer is branch.classifier else 0.3)
    return model


def some_proposals(seed: int = 0, count: int = 50) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, count, 2, generator=random) * 70
    return list(torch.cat([corner, corner + 5 + torch.rand(2, count, 2, generator=random) * 25], 2))


# One stage


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_with_one_stage_it_is_the_plain_detector_bit_for_bit(variant: str, convention: str) -> None:
    """Losses, gradients and detections; detectron2's box loss is another one, and is set to ours."""
    own = {"convention": convention, "ious": [0.5], "beta": 1.0, "early": "narrow"}
    found = []
    for settings in (own, None):
        model = small_model(variant, cascade=settings)
        torch.manual_seed(5)
        losses = model.train().losses(IMAGES, TARGETS)
        torch.stack(list(losses.values())).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        detections = model.eval().detect(IMAGES)
        found.append(losses | gradients | model.state_dict() | detections[0] | detections[1])
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items() if value is not None)


# Settings


def test_stages_of_the_published_conventions() -> None:
    stages = small_config("single-fc", cascade="mmdetection", roi={"class_agnostic": True}).stages
    assert [s.foreground_iou for s in stages] == [0.5, 0.6, 0.7]
    assert [s.deviations[0] for s in stages] == [0.1, 0.05, 0.033]
    assert [s.deviations[3] for s in stages] == [0.2, 0.1, 0.067]
    assert [s.loss_weight for s in stages] == [1, 0.5, 0.25]
    assert {(s.beta, s.roi_gradient) for s in stages} == {(1.0, 1.0)}
    model = small_model("single-fc", cascade="detectron2", roi={"class_agnostic": True})
    weights = [[10, 10, 5, 5], [20, 20, 10, 10], [30, 30, 15, 15]]
    assert [list(head.coder.weights) for head in model.roi_heads.each] == [pytest.approx(w) for w in weights]
    assert {(s.beta, s.loss_weight, s.roi_gradient) for s in model.config.stages} == {(0.0, 1.0, 1 / 3)}


def test_every_cascade_comes_in_every_size() -> None:
    for name, (variant, _) in CASCADES.items():
        for size in SIZES:
            config = preset(f"{name}-{size}")
            assert config.branches == preset(f"{variant}-{size}").branches
            assert len(config.stages) == 3
            assert config.roi.class_agnostic


def test_settings_choose_stages_conventions_and_early_branches() -> None:
    values = preset_values("cascade-double-head-tiny")
    two = ModelConfig.model_validate(override(values, {"cascade.ious": [0.5, 0.65]})).stages
    assert [(s.foreground_iou, s.loss_weight) for s in two] == [(0.5, 1.0), (0.65, 0.5)]
    for name, branches in EARLY.items():
        config = ModelConfig.model_validate(override(values, {"cascade.early": name}))
        early, *_, last = config.stages
        assert (early.branches, last.branches) == (branches or config.branches, config.branches)
        assert ModelConfig.model_validate(config.model_dump(mode="json")) == config
    other = ModelConfig.model_validate(override(values, {"cascade.convention": "detectron2"}))
    assert other.cascade is not None
    assert other.cascade.sampling == "once"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"cascade": "mmdet"}, "mmdetection, detectron2"),
        ({"cascade": {"early": "wide"}}, "same, fc, narrow"),
        ({"cascade": {"ious": []}}, "ious"),
        ({"cascade": {"ious": [0.5, 0.6], "loss_weights": [1.0]}}, "loss_weights"),
        ({"cascade": {"ious": [0.5, 0.6, 0.7, 0.75]}}, "deviations"),
        ({"cascade": {"early": [{"trunk": "fc", "classify": 1, "regress": 0}]}}, "early"),
        ({"cascade": {"early": [{"trunk": "fc", "classify": 1, "regress": 1, "temperature": 2}]}}, "model.branches"),
        ({"roi": {"class_agnostic": False}}, "class_agnostic"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        small_config("cascade-double-head", **changes)


# Learning


@pytest.mark.parametrize("early", EARLY)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("variant", ["single-fc", "double-head", "double-head-ext", "double-head-reverse"])
def test_losses_are_named_by_stage_and_odd_images_train_and_predict(variant: str, convention: str, early: str) -> None:
    model = cascade(variant, cascade={"convention": convention, "early": early}, head_norm="batch").train()
    wanted = {"rpn_classify", "rpn_regress"}
    for number, (head, stage) in enumerate(zip(model.roi_heads.each, model.config.stages, strict=True), 1):
        for name, branch in zip(head.names, stage.branches, strict=True):
            wanted |= {f"stage{number}_{name}_{task}" for task in ("classify", "regress") if getattr(branch, task)}
    nothing, dot = target([], []), target([[7, 7, 8, 8], [0, 0, 1, 1]], [1, 2])
    for targets in (TARGETS, [nothing, nothing], [dot, nothing]):
        model.zero_grad()
        losses = model.losses(IMAGES, targets)
        assert set(losses) == wanted
        torch.stack(list(losses.values())).sum().backward()
        assert all(torch.isfinite(value) for value in losses.values())
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval()
    for found in model.detect([torch.zeros(3, 1, 1, dtype=torch.uint8), IMAGES[0]]):
        assert all(torch.isfinite(found[key]).all() for key in ("boxes", "scores"))
    none = [torch.zeros(0, 4)] * 2
    assert all(not len(d["boxes"]) for d in model.roi_heads.detections(LEVELS, none, SIZES_OF_LEVELS, model.options))
    for targets in (TARGETS, [nothing] * 2):
        losses = model.train().roi_heads.losses(LEVELS, none, targets, SIZES_OF_LEVELS)
        assert all(torch.isfinite(value) for value in losses.values())


def watched(model: Detector, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Tensor], Any]]:
    """What each stage's `sample` or `labelled` is given, and what it gives."""
    calls: list[tuple[str, list[Tensor], Any]] = []
    for head in model.roi_heads.each:
        for name in ("sample", "labelled"):
            own = getattr(head, name)

            def watch(proposals: Any, targets: Any, name: str = name, own: Any = own) -> Any:
                result = own(proposals, targets)
                calls.append((name, proposals, result))
                return result

            monkeypatch.setattr(head, name, watch)
    return calls


def test_mmdetection_samples_refined_boxes_anew_with_the_truth_added(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cascade("single-fc", cascade={"early": "same"}, roi={"sampled": 24})
    calls = watched(model, monkeypatch)
    model.roi_heads.losses(LEVELS, some_proposals(), TARGETS, SIZES_OF_LEVELS)
    drawn = [call for call in calls if call[0] == "sample"]
    assert len(drawn) == 3
    for (_, _, before), (_, given, after), head in zip(drawn, drawn[1:], model.roi_heads.each, strict=False):
        for image in range(2):
            truth = TARGETS[image]["boxes"]
            _, deltas = head.run(0, LEVELS, [b if i == image else b[:0] for i, b in enumerate(before.boxes)])
            boxes = head.coder.decode_single(deltas, before.boxes[image])
            boxes = torch.stack([boxes[:, k].clamp(0, (128, 96)[k % 2]) for k in range(4)], 1)
            is_truth = (before.boxes[image][:, None] == truth).all(2).any(1)
            assert is_truth.any()
            expected = boxes[~is_truth & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
            torch.testing.assert_close(given[image], expected)
            assert len(after.boxes[image]) == min(24, len(expected) + len(truth))
            assert after.objects[image].sum() == len(truth)  # at most a quarter of 24 is positive, the truth of it
    assert all((iou >= 0.7).all() for iou in positives_iou(drawn[2][2]))


def positives_iou(sample: Any) -> list[Tensor]:
    from torchvision.ops import box_iou

    return [
        box_iou(boxes[labels > 0], t["boxes"]).amax(1)
        for boxes, labels, t in zip(sample.boxes, sample.labels, TARGETS, strict=True)
    ]


def test_detectron2_samples_once_and_labels_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cascade("single-fc", cascade={"convention": "detectron2", "early": "same"}, roi={"sampled": 24})
    calls = watched(model, monkeypatch)
    model.roi_heads.losses(LEVELS, some_proposals(), TARGETS, SIZES_OF_LEVELS)
    stages = [call for call in calls if call[0] == "sample"] + [call for call in calls if call[0] == "labelled"][1:]
    assert [name for name, *_ in stages] == ["sample", "labelled", "labelled"]
    counts = [sum(len(boxes) for boxes in result.boxes) for _, _, result in stages]
    assert counts[0] >= counts[1] >= counts[2] > 0.8 * counts[0]  # but for what has become empty
    assert all((iou >= 0.7).all() for iou in positives_iou(stages[2][2]))


def test_detectron2_takes_a_third_of_the_gradient_into_roi_features() -> None:
    gradients = {}
    for shared in ("shared", "whole"):
        model = cascade("single-fc", cascade={"convention": "detectron2", "roi_gradient": shared})
        levels = [level.clone().requires_grad_() for level in LEVELS]
        torch.manual_seed(0)
        losses = model.roi_heads.losses(levels, some_proposals(), TARGETS, SIZES_OF_LEVELS)
        torch.stack(list(losses.values())).sum().backward()
        weight = next(iter(model.roi_heads)).classifier.weight.grad  # type: ignore[union-attr]
        gradients[shared] = [level.grad for level in levels], weight
    for whole, third in zip(gradients["whole"][0], gradients["shared"][0], strict=True):
        torch.testing.assert_close(third, whole / 3)
    torch.testing.assert_close(gradients["shared"][1], gradients["whole"][1])


def test_weights_of_stages_and_of_branches_multiply() -> None:
    def losses(**settings: Any) -> dict[str, Tensor]:
        model = cascade("double-head", cascade=settings)
        torch.manual_seed(0)
        return model.roi_heads.losses(LEVELS, some_proposals(), TARGETS, SIZES_OF_LEVELS)

    usual, equal = losses(), losses(loss_weights=[1.0, 1.0, 1.0])
    for name, value in usual.items():
        factor = {"1": 1.0, "2": 0.5, "3": 0.25}[name[len("stage")]]
        torch.testing.assert_close(value, equal[name] * factor, msg=name)
    assert {name for name, value in usual.items() if not value} <= {"stage3_conv_regress"}


def test_with_beta_0_the_box_loss_is_l1() -> None:
    deltas, wanted = torch.tensor([[0.5, -2.0, 0.0, 0.0]]), torch.zeros(1, 4)
    assert float(box_loss(deltas, torch.tensor([1]), wanted, 2, beta=0.0)) == pytest.approx(1.25)


def test_later_stages_teach_the_earlier_ones_nothing() -> None:
    """Refined boxes are constants, as published."""
    model = cascade("double-head")
    losses = model.roi_heads.losses(LEVELS, some_proposals(), TARGETS, SIZES_OF_LEVELS)
    sum(value for name, value in losses.items() if name.startswith("stage3_")).backward()  # type: ignore[union-attr]
    first, second, third = model.roi_heads.each
    assert all(p.grad is None for head in (first, second) for p in head.parameters())
    assert all(p.grad is not None for p in third.parameters())


# Detecting


@pytest.mark.parametrize("early", EARLY)
@pytest.mark.parametrize("variant", ["double-head", "double-conv"])
@pytest.mark.parametrize("seed", range(2))
def test_staged_inference_gives_the_detections_of_unstaged(variant: str, early: str, seed: int) -> None:
    settings: dict[str, Any] = {
        "cascade": {"early": early, "convention": list(CONVENTIONS)[seed]},
        "roi": {"score_threshold": (0.0, 0.1)[seed], "detections": (30, 100)[seed]},
    }
    model = cascade(variant, **settings).double().eval()
    levels = [level.double() for level in LEVELS]
    proposals = [p.double() for p in some_proposals(seed, 200)]
    seen: list[int] = []
    (place,) = model.roi_heads.last.box_branches()
    model.roi_heads.last.branches[place].register_forward_hook(lambda m, given, result: seen.append(len(given[0])))
    whole = inference_options(model.config, {"inference_proposals": "all"})
    results = [model.roi_heads.detections(levels, proposals, SIZES_OF_LEVELS, o) for o in (model.options, whole)]
    assert sum(seen[:-1]) <= seen[-1] == 400
    for one, other in zip(*results, strict=True):
        assert len(one["boxes"])
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"])
        torch.testing.assert_close(one["scores"], other["scores"])


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_scores_are_averaged_branch_by_branch_over_the_stages_that_have_it(convention: str) -> None:
    model = cascade("double-head-ext", cascade={"convention": convention, "early": "fc"}).eval()
    proposals = some_proposals()
    boxes, fc = proposals, []
    for head in model.roi_heads.each:
        logits, deltas = head.run(0, LEVELS, boxes)
        fc.append(logits)
        if head is not model.roi_heads.last:
            found = head.coder.decode_single(deltas, torch.cat(boxes))
            boxes = [model.edges.clip(b, (96, 128)) for b in found.split([len(p) for p in proposals])]
    conv = model.roi_heads.last.run(1, LEVELS, boxes)[0].softmax(1)  # type: ignore[union-attr]
    mean = (sum(fc) / 3).softmax(1) if convention == "mmdetection" else sum(x.softmax(1) for x in fc) / 3
    for settings, expected in (
        ({}, 1 - (1 - mean) * (1 - conv)),
        ({"score_branch": "fc"}, mean),
        ({"score_branch": "conv"}, conv),
        ({"fusion": "average"}, (mean + conv) / 2),
    ):
        scored = model.roi_heads._scored(LEVELS, proposals, SIZES_OF_LEVELS, inference_options(model.config, settings))
        torch.testing.assert_close(torch.cat(scored.scores), expected)
        torch.testing.assert_close(torch.cat(scored.proposals), torch.cat(boxes))
    floor = float(mean.detach()[:, 1:].amax(1).median())
    scored = model.roi_heads._scored(
        LEVELS, proposals, SIZES_OF_LEVELS, inference_options(model.config, {"score_floor": floor})
    )
    above = (mean[:, 1:] > floor).any(1)
    torch.testing.assert_close(torch.cat(scored.scores), (1 - (1 - mean) * (1 - conv))[above])
    assert torch.equal(torch.cat(scored.indices), torch.arange(50).repeat(2)[above])


@pytest.mark.parametrize("classification", ["softmax", "sigmoid"])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_mean_over_the_stages_is_scored_and_calibrated(classification: str, convention: str) -> None:
    """Logits as `calibrate` asks for them give the scores of the detections, with calibration and without."""
    changes = {"cascade": {"convention": convention}, "roi": {"classification": classification}}
    model = cascade("double-head-ext", **changes).eval()
    proposals = some_proposals()
    logits = model.roi_heads.logits(LEVELS, proposals, SIZES_OF_LEVELS, model.options)
    assert logits.keys() == {"fc", "conv"}
    for temperature, offset in ((1.0, 0.0), (2.0, 1.5)):
        values = override(
            model.config.model_dump(mode="json"),
            {"branches.0.temperature": temperature, "branches.0.background_offset": offset},
        )
        other = Detector(ModelConfig.model_validate(values), 4).eval()
        other.load_state_dict(model.state_dict())
        scored = other.roi_heads._scored(LEVELS, proposals, SIZES_OF_LEVELS, other.options)
        if classification == "softmax":
            fc = ((logits["fc"] + torch.tensor([offset, 0, 0, 0, 0])) / temperature).softmax(1)[:, 1:]
            conv = logits["conv"].softmax(1)[:, 1:]
        else:
            fc, conv = ((logits["fc"] - offset) / temperature).sigmoid()[:, 1:], logits["conv"].sigmoid()[:, 1:]
        torch.testing.assert_close(torch.cat(scored.scores)[:, 1:], 1 - (1 - fc) * (1 - conv))


def test_focal_loss_and_weights_of_classes_count_in_every_stage() -> None:
    plain, other = (cascade(roi={"focal_gamma": gamma}) for gamma in (0.0, 2.0))
    heavy = cascade()
    heavy.roi_heads.weigh_classes(torch.tensor([1.0, 9.0, 9.0, 9.0, 9.0]))
    found = []
    for model in (plain, other, heavy):
        torch.manual_seed(0)
        found.append(model.roi_heads.losses(LEVELS, some_proposals(), TARGETS, SIZES_OF_LEVELS))
    names = [f"stage{n}_fc_classify" for n in (1, 2, 3)]
    assert all(focal[name] < usual[name] < weighed[name] for usual, focal, weighed in [found] for name in names)


def test_a_box_branch_is_chosen_in_the_stages_that_have_it() -> None:
    model = cascade("double-head-ext", cascade={"early": "same"})
    for name, place in (("fc", 0), ("conv", 1), (None, 1)):
        options = inference_options(model.config, {"box_branch": name})
        assert [head.box_branches(options) for head in model.roi_heads.each] == [[place]] * 3
    early = cascade("double-head-ext", cascade={"early": "fc"})
    options = inference_options(early.config, {"box_branch": "conv"})
    assert [head.box_branches(options) for head in early.roi_heads.each] == [[0], [0], [1]]


# Everything that a detector does


def test_a_copy_for_inference_finds_the_same() -> None:
    model = cascade("double-head", cascade={"early": "narrow"}, head_norm="batch").eval()
    ready = for_inference(model, torch.device("cpu"))
    folded = [m for branch in ready.roi_heads for m in branch.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not folded
    for one, other in zip(model.detect(IMAGES), ready.detect(IMAGES), strict=True):
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-4, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.detect(IMAGES)[0]["boxes"].dtype == torch.float32
        losses = model.train().losses(IMAGES, TARGETS)
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_checkpoints_and_fine_tuning_onto_other_classes(tmp_path: Path) -> None:
    model = cascade("double-head").eval()
    four, two = (Categories(tuple("abcd"[:n]), tuple(range(1, n + 1))) for n in (4, 2))
    path = tmp_path / "cascade.safetensors"
    save_checkpoint(path, model.config, four, model.state_dict(), {})
    again, checkpoint = load_model(path)
    assert checkpoint.config == model.config
    for one, other in zip(model.detect(IMAGES), again.detect(IMAGES), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    other = small_model("cascade-double-head", classes=2)
    left = adopt(other, two, path)
    assert {key.split(".")[-2] for key in left} == {"classifier"}
    assert {key.split(".")[2] for key in left} == {"0", "1", "2"}


def test_cost_counts_all_stages() -> None:
    """The early fc-heads see all proposals, and only the last stage's conv-head the owners alone."""
    plain, whole = (cost(preset(name)) for name in ("double-head-tiny", "cascade-double-head-tiny"))
    agnostic = cost(
        ModelConfig.model_validate(override(preset_values("double-head-tiny"), {"roi.class_agnostic": True}))
    )
    hidden = 128 * 49 * 512 + 512 * 512
    assert whole.gflops - agnostic.gflops == pytest.approx(2 * 2 * 300 * (hidden + 512 * (81 + 4)) / 1e9, rel=1e-6)
    assert whole.gflops_all - whole.gflops == pytest.approx(agnostic.gflops_all - agnostic.gflops)
    assert whole.parameters - agnostic.parameters == 2 * (hidden + 2 * 512 + 513 * (81 + 4))
    assert plain.parameters > agnostic.parameters
