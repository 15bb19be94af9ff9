"""What a box head makes of class logits: scores and losses."""

from __future__ import annotations

import pytest
import torch
from small_models import small_model, target
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from doublehead.config import RoIConfig
from doublehead.model.classification import RARE, Classification

LOGITS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 5
IMAGE = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
SIGMOID = {"roi": {"classification": "sigmoid"}}


def classification(**settings):
    return Classification(RoIConfig(**settings), classes=4)


def test_the_papers_loss_is_the_default():
    assert classification().loss(LOGITS, LABELS).equal(functional.cross_entropy(LOGITS, LABELS))
    assert classification().scores(LOGITS).equal(LOGITS.softmax(1))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_without_focus_a_focal_loss_is_the_loss(kind):
    one = classification(classification=kind, focal_gamma=1e-9).loss(LOGITS, LABELS)
    torch.testing.assert_close(one, classification(classification=kind).loss(LOGITS, LABELS))


def test_sigmoid_losses_are_those_of_torchvision():
    wanted = functional.one_hot(LABELS, 5)[:, 1:].float()
    for gamma in (0.0, 2.0):
        expected = sigmoid_focal_loss(LOGITS[:, 1:], wanted, alpha=-1, gamma=gamma).sum(1).mean()
        found = classification(classification="sigmoid", focal_gamma=gamma).loss(LOGITS, LABELS)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_focus_takes_more_from_easy_proposals(kind):
    def ratio(logit):
        others = 0.0 if kind == "softmax" else -20.0  # answered already
        logits, labels = torch.tensor([[0.0, logit, *[others] * 3]]), torch.tensor([1])
        focused = classification(classification=kind, focal_gamma=2.0).loss(logits, labels)
        return float(focused / classification(classification=kind).loss(logits, labels))

    assert 1 > ratio(-2.0) > ratio(1.0) > ratio(4.0) > 0


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_class_of_weight_two_counts_as_if_its_proposals_came_twice(kind, gamma):
    plain, weighted = (classification(classification=kind, focal_gamma=gamma) for _ in range(2))
    weighted.weigh(torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]))
    twice = torch.cat([torch.arange(40), torch.where(LABELS == 2)[0]])
    expected = plain.loss(LOGITS[twice], LABELS[twice]) * len(twice) / 40
    torch.testing.assert_close(weighted.loss(LOGITS, LABELS), expected)


def test_sigmoid_scores_classes_by_themselves():
    scores = classification(classification="sigmoid").scores(LOGITS)
    assert scores.shape == LOGITS.shape
    assert scores[:, 1:].equal(LOGITS[:, 1:].sigmoid())
    torch.testing.assert_close(scores[:, 0], (1 - LOGITS[:, 1:].sigmoid()).prod(1))
    other = LOGITS.clone()
    other[:, 3] += 5
    assert classification(classification="sigmoid").scores(other)[:, [1, 2, 4]].equal(scores[:, [1, 2, 4]])


@pytest.mark.parametrize("variant", ["double-head", "double-head-ext"])
def test_a_sigmoid_model_starts_without_false_alarms_and_learns(variant):
    model = small_model(variant, **SIGMOID)
    for branch in model.roi_heads:
        if branch.classifier is not None:
            assert branch.classifier.bias.sigmoid().tolist() == pytest.approx([RARE] * 5, rel=1e-4)
    assert all(len(found["scores"]) == 0 for found in model.eval().detect([IMAGE]))
    losses = model.train().losses([IMAGE], [target([[10, 10, 60, 70]], [2])])
    assert losses["fc_classify"] < 1.0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_class_weights_reach_every_branch_and_leave_the_weights_alone():
    model = small_model("double-head-ext")
    keys = model.state_dict().keys()
    before = {}
    for step in (0, 1):
        torch.manual_seed(5)
        before[step] = model.losses([IMAGE], [target([[10, 10, 60, 70]], [2])])
        model.roi_heads.weigh_classes(torch.tensor([1.0, 1.0, 50.0, 1.0, 1.0]))
    for name in ("fc_classify", "conv_classify"):
        assert before[1][name] > before[0][name]
    for name in ("fc_regress", "conv_regress", "rpn_classify"):
        assert before[1][name] == before[0][name]
    assert model.state_dict().keys() == keys  # checkpoints stay as they are
