"""A branch that classifies a few of the sampled background proposals."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from small_models import small_config, small_model, target

from doublehead.model.negatives import few_negatives
from doublehead.model.parts import BranchConfig

OBJECT = [20.0, 20.0, 60.0, 60.0]
LEVELS = [torch.randn(2, 16, 96 // s, 128 // s, generator=torch.Generator().manual_seed(s)) for s in (4, 8, 16, 32)]
LABELS = [torch.tensor([2, 1, *[0] * 38]), torch.tensor([3, *[0] * 39])]
BACKGROUND = torch.rand(80, generator=torch.Generator().manual_seed(0))


def conv(negatives: int | None, hard: int = 0) -> dict:
    own = {"negatives": negatives, "hard_negatives": hard}
    return {"branches": [
        {"trunk": "fc", "classify": 1.4, "regress": 0.6}, {"trunk": "conv", "classify": 0.5, "regress": 2.0, **own},
    ]}  # fmt: skip


def branch(negatives: int, hard: int = 0) -> BranchConfig:
    return BranchConfig(trunk="conv", classify=0.5, regress=2.0, negatives=negatives, hard_negatives=hard)


def scene() -> tuple[list[torch.Tensor], list[dict]]:
    """Two images with two objects and 60 proposals, of which a quarter lie on an object."""
    random = torch.Generator().manual_seed(1)
    corner = torch.rand(120, 2, generator=random) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(120, 2, generator=random) * 30], 1)
    boxes[::4] = torch.tensor(OBJECT) + torch.rand(30, 4, generator=random) * 4
    return list(boxes.split(60)), [target([OBJECT], [1]), target([OBJECT, [70.0, 10.0, 110.0, 50.0]], [2, 3])]


@pytest.mark.parametrize(("negatives", "hard"), [(8, 0), (8, 8), (8, 3), (100, 0), (100, 100)])
def test_all_positives_and_so_many_negatives_are_seen(negatives, hard):
    places, weights = few_negatives(LABELS, branch(negatives, hard), BACKGROUND)
    for label, chosen in zip(LABELS, places, strict=True):
        assert len(chosen.unique()) == len(chosen)
        assert int((label[chosen] > 0).sum()) == int((label > 0).sum())
        assert int((label[chosen] == 0).sum()) == min(negatives, int((label == 0).sum()))
    assert len(weights) == sum(map(len, places))


def test_the_hardest_are_those_that_look_least_like_background():
    places, weights = few_negatives(LABELS, branch(5, 5), BACKGROUND)
    for label, score, chosen in zip(LABELS, BACKGROUND.split(40), places, strict=True):
        negative = torch.where(label == 0)[0]
        assert set(chosen[label[chosen] == 0].tolist()) == set(negative[score[negative].argsort()[:5]].tolist())
    torch.testing.assert_close(weights, torch.full((13,), 1 / 80))


@pytest.mark.parametrize("hard", [0, 3])
def test_the_expected_loss_is_the_mean_over_all_that_was_sampled(hard):
    """Any loss of the proposals, averaged over many draws."""
    loss = torch.rand(80, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    draws = []
    for _ in range(4000):
        places, weights = few_negatives(LABELS, branch(6, hard), BACKGROUND)
        draws.append(float((loss[torch.cat([places[0], places[1] + 40])] * weights).sum()))
    assert sum(draws) / len(draws) == pytest.approx(float(loss.mean()), rel=0.01)


@pytest.mark.parametrize("hard", [0, 64])
def test_where_all_negatives_are_seen_losses_and_gradients_are_those_of_the_whole_sample(hard):
    proposals, targets = scene()
    found = []
    for negatives in (None, 64):
        model = small_model("double-head-ext", roi={"sampled": 64}, **conv(negatives, hard if negatives else 0))
        torch.manual_seed(0)
        losses = model.roi_heads.losses(LEVELS, proposals, targets, [(96, 128)] * 2)
        sum(losses.values()).backward()
        found.append((losses, [p.grad for p in model.roi_heads.parameters()]))
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1])


@pytest.mark.parametrize("hard", [0, 4])
def test_few_negatives_change_neither_the_fc_head_nor_the_loss_of_boxes(hard):
    """Group norm, which knows nothing of other proposals; the conv-head sees positives and four negatives an image."""
    proposals, targets = scene()
    found, seen = [], []
    for negatives in (None, 4):
        model = small_model("double-head-ext", roi={"sampled": 64}, **conv(negatives, hard if negatives else 0))
        trunk = model.roi_heads.last.branches[1].trunk
        trunk.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        torch.manual_seed(0)
        sample = model.roi_heads.last.sample(proposals, targets)
        found.append(model.roi_heads.last.losses(LEVELS, sample)[0])
    for name in ("fc_classify", "fc_regress", "conv_regress"):
        torch.testing.assert_close(found[1][name], found[0][name])
    assert found[1]["conv_classify"] != found[0]["conv_classify"]
    assert seen == [len(sample), len(sample.positives()) + 8]


def test_an_image_without_objects_has_negatives_alone():
    proposals, _ = scene()
    model = small_model("double-head-ext", roi={"sampled": 16}, **conv(4, 2))
    losses = model.roi_heads.losses(LEVELS, proposals, [target([], []), target([], [])], [(96, 128)] * 2)
    sum(losses.values()).backward()
    assert float(losses["conv_regress"].detach()) == 0
    assert float(losses["conv_classify"].detach()) > 0


def test_a_stage_that_refines_boxes_refines_all_of_them():
    proposals, targets = scene()
    roi = {"sampled": 16, "class_agnostic": True}
    cascade = {"convention": "mmdetection", "early": "same"}
    model = small_model("double-head-ext", roi=roi, cascade=cascade, **conv(2))
    seen = []
    for head in model.roi_heads.each:
        head.branches[1].trunk.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    model.roi_heads.losses(LEVELS, proposals, targets, [(96, 128)] * 2)
    assert seen[:2] == [32, 32]
    assert seen[2] < 32


@pytest.mark.parametrize(
    ("variant", "branches", "named"),
    [
        ("double-head", [("fc", 2.0, 0.0, {}), ("conv", 0.0, 2.5, {"negatives": 8})], "branches.1"),
        ("double-head-ext", [("fc", 1.0, 1.0, {"negatives": 8, "hard_negatives": 8})], "branches.0.hard_negatives"),
        (
            "double-head-ext",
            [("fc", 1.0, 1.0, {"negatives": 8}), ("conv", 1.0, 1.0, {"negatives": 8, "hard_negatives": 8})],
            "branches.1.hard_negatives",
        ),
        ("double-head-ext", [("fc", 1.0, 1.0, {"negatives": 8, "hard_negatives": 9})], "hard_negatives"),
        ("double-head-ext", [("fc", 1.0, 1.0, {"negatives": 0})], "negatives"),
    ],
)
def test_settings_that_mean_nothing_are_refused(variant, branches, named):
    rows = [{"trunk": trunk, "classify": c, "regress": r, **own} for trunk, c, r, own in branches]
    with pytest.raises(ValidationError, match=named):
        small_config(variant, branches=rows)
