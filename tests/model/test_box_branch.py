"""How the branch that localises may learn: positives of its own, its loss, its norms, its rate."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from small_models import small_config, small_model, target
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, generalized_box_iou_loss

from doublehead.config import TrainConfig, inference_options
from doublehead.model.box_head import giou_loss
from doublehead.model.stages import ONE_HEAD
from doublehead.model.trunks import BottleneckBlock
from doublehead.training.state import make_optimizer

OBJECT = [20.0, 20.0, 60.0, 60.0]
PROPOSALS = torch.tensor([[20.0 + d, 20.0, 60.0 + d, 60.0] for d in (2, 4, 16, 18, 20, 40, 50)])
LEVELS = [torch.randn(1, 16, 96 // s, 128 // s, generator=torch.Generator().manual_seed(s)) for s in (4, 8, 16, 32)]


def test_the_branch_that_regresses_draws_positives_by_its_own_iou() -> None:
    """The classifying branch's sample stays as it was."""
    heads = {iou: small_model("double-head", roi={"sampled": 16, "regress_iou": iou}).roi_heads for iou in (None, 0.3)}
    targets = [target([OBJECT], [2])]
    torch.manual_seed(0)
    plain = heads[None].last.sample([PROPOSALS], targets)
    torch.manual_seed(0)
    found = heads[0.3].last.sample([PROPOSALS], targets)
    torch.testing.assert_close(found.boxes, plain.boxes)
    assert plain.to_regress is None
    assert found.to_regress is not None
    own = found.to_regress
    ious = box_iou(own.boxes[0], torch.tensor([OBJECT]))[:, 0]
    assert ((ious >= 0.3) & (ious < 0.5)).any()
    assert (ious >= 0.3).all()
    assert (own.labels[0] == 2).all()
    wanted = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(torch.tensor([OBJECT]).expand(len(ious), 4), own.boxes[0])
    torch.testing.assert_close(own.targets[0], wanted)


def test_it_learns_from_what_is_background_to_the_classifying_branch() -> None:
    """With proposals of IoU 0.38 and 0.33 alone, and the object itself: three positives instead of one."""
    near = PROPOSALS[3:5]
    for iou, seen in ((None, 1), (0.3, 3)):
        heads = small_model("double-head", roi={"sampled": 16, "positive_fraction": 0.5, "regress_iou": iou}).roi_heads
        counts = []
        heads.last.branches[1].trunk.register_forward_pre_hook(
            lambda _, given, counts=counts: counts.append(len(given[0]))
        )
        losses = heads.losses(LEVELS, [near], [target([OBJECT], [1])], [(96, 128)])
        losses["conv_regress"].backward()
        assert counts == [seen]


def test_as_many_are_drawn_as_there_may_be_positives() -> None:
    head = small_model("double-head", roi={"sampled": 8, "positive_fraction": 0.25, "regress_iou": 0.3}).roi_heads.last
    sample = head.sample([PROPOSALS.repeat(9, 1)], [target([OBJECT], [1])])
    assert sample.to_regress is not None
    assert len(sample.to_regress) == 2


@pytest.mark.parametrize("changes", [{"roi": {"training_proposals": "all"}}, {"cascade": "mmdetection"}])
def test_it_is_refused_where_it_would_mean_nothing(changes: dict) -> None:
    roi = {"regress_iou": 0.4, "class_agnostic": True} | changes.get("roi", {})
    with pytest.raises(ValidationError, match="regress_iou"):
        small_config("double-head", **(changes | {"roi": roi}))


def test_giou_loss_is_that_of_the_decoded_boxes() -> None:
    """Computed without the proposals, which do not change it."""
    random = torch.Generator().manual_seed(0)
    proposals = torch.rand(20, 4, generator=random) * 50
    proposals[:, 2:] += proposals[:, :2] + 4
    truth = proposals + torch.rand(20, 4, generator=random) * 3
    coder = BoxCoder(tuple(1 / d for d in ONE_HEAD))
    wanted = coder.encode_single(truth, proposals)
    deltas = torch.randn(20, 8, generator=random)
    labels = torch.tensor([1, 0] * 10)
    boxes = coder.decode_single(deltas[:, 4:], proposals)
    expected = generalized_box_iou_loss(boxes, truth)[labels == 1].sum() / 64
    torch.testing.assert_close(giou_loss(deltas, labels, wanted, 64, ONE_HEAD), expected)
    assert float(giou_loss(wanted, torch.ones_like(labels), wanted, 64, ONE_HEAD)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("changes", [{"box_loss": "giou"}, {"beta": 0.0}])
def test_the_loss_of_boxes_can_be_chosen(changes: dict) -> None:
    """Same model, same sample: another loss of boxes, and the others as they were."""
    losses = []
    for roi in ({}, changes):
        heads = small_model("double-head", roi=roi).roi_heads
        torch.manual_seed(0)
        losses.append(heads.losses(LEVELS, [PROPOSALS], [target([OBJECT], [1])], [(96, 128)]))
    assert losses[0]["fc_classify"] == losses[1]["fc_classify"]
    assert losses[0]["conv_regress"] != losses[1]["conv_regress"]


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
def test_a_zero_initialised_bottleneck_is_the_identity_and_learns(norm: str) -> None:
    model = small_model(
        "double-head", head_norm=norm, conv_head={"width": 32, "bottleneck_width": 16, "zero_init": True}
    )
    blocks = [m for m in model.modules() if isinstance(m, BottleneckBlock)]
    assert blocks
    x = torch.rand(3, 32, 7, 7)
    for block in blocks:
        torch.testing.assert_close(block(x), x)
        block(x).sum().backward()
        assert any(float(p.grad.abs().sum()) > 0 for p in block.parameters() if p.grad is not None)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_norms_of_the_head_are_where_they_were_asked_for(norm: str) -> None:
    trunk = small_model("double-head", head_norm=norm).roi_heads.last.branches[1].trunk
    found = [m for m in trunk.modules() if isinstance(m, nn.GroupNorm | nn.BatchNorm2d)]
    assert [m.num_groups for m in found] == ([1] * len(found) if norm == "layer" else [])
    assert bool(found) == (norm == "layer")


def test_a_branch_can_have_a_rate_of_its_own() -> None:
    model = small_model("double-head", branches=[
        {"trunk": "fc", "classify": 2.0, "regress": 0.0}, {"trunk": "conv", "classify": 0.0, "regress": 2.5, "lr": 3.0},
    ])  # fmt: skip
    groups = make_optimizer(model, TrainConfig()).param_groups
    assert [group["share"] for group in groups] == [1, 3]
    assert set(groups[1]["params"]) == set(model.roi_heads.last.branches[1].parameters())


@pytest.mark.parametrize("where", ["owners", "all"])
def test_fused_boxes_are_decoded_from_the_mean_of_both_heads_deltas(where: str) -> None:
    model = small_model("double-head-fused").eval()
    head, coder = model.roi_heads.last, BoxCoder((10.0, 10.0, 5.0, 5.0))
    for branch in head:
        nn.init.normal_(branch.regressor.weight, std=0.5)

    def boxes(**options: str) -> torch.Tensor:
        chosen = inference_options(model.config, {"inference_proposals": where} | options)
        with torch.no_grad():
            return head.scored(LEVELS, [PROPOSALS], chosen).boxes([torch.arange(len(PROPOSALS))])[0]

    with torch.no_grad():
        deltas = [head.run(i, LEVELS, [PROPOSALS])[1] for i in range(2)]
    decoded = [coder.decode_single(d, PROPOSALS).unflatten(1, (-1, 4)) for d in (sum(deltas) / 2, *deltas)]
    for wanted, found in zip(decoded, (boxes(), boxes(box_branch="fc"), boxes(box_branch="conv")), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(boxes(box_fusion="largest"), decoded[2], atol=1e-3, rtol=1e-4)
    assert not torch.allclose(decoded[1], decoded[2], atol=1)


def test_the_conv_head_of_a_fused_model_sees_owners_alone() -> None:
    """Its boxes are averaged with those of the fc-head, which ran on all proposals."""
    model = small_model("double-head-fused").eval()
    seen = []
    model.roi_heads.last.branches[1].trunk.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    with torch.no_grad():
        scored = model.roi_heads.last.scored(LEVELS, [PROPOSALS], model.options)
        assert scored.staged
        scored.boxes([torch.tensor([4, 1])])
    assert seen == [2]
