import pytest
import torch
from small_models import small_model, target
from torch import nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from doublehead.config import inference_options
from doublehead.model import matching
from doublehead.model.box_head import box_loss
from doublehead.model.detector import Detector, resize
from doublehead.model.matching import BoxMatcher
from doublehead.model.variants import VARIANTS

IMAGES = [
    torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
    torch.randint(0, 256, (3, 128, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)),
]
TARGETS = [target([[10, 10, 60, 70], [5, 20, 30, 40]], [1, 3]), target([[20, 30, 80, 120]], [2])]


def fresh_heads(model: Detector) -> Detector:
    """Predictors with larger random weights, so that an untrained model has detections of many scores and boxes."""
    torch.manual_seed(3)
    for branch in model.roi_heads:
        for layer in (branch.classifier, branch.regressor):
            if layer is not None:
                nn.init.normal_(layer.weight, std=2.0 if layer is branch.classifier else 0.5)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_and_losses_follow_from_the_row(variant: str) -> None:
    model = small_model(variant).train()
    losses = model.losses(IMAGES, TARGETS)
    row = VARIANTS[variant]
    wanted = {"rpn_classify", "rpn_regress"}
    for name, config, branch in zip(model.config.branch_names, row, model.roi_heads, strict=True):
        wanted |= {f"{name}_{task}" for task in ("classify", "regress") if getattr(config, task)}
        assert (branch.classifier is None) == (config.classify == 0)
        assert (branch.regressor is None) == (config.regress == 0)
    assert set(losses) == wanted
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_detections_are_sorted_and_inside_the_image(variant: str) -> None:
    model = fresh_heads(small_model(variant, roi={"score_threshold": 0.0})).eval()
    for image, found in zip(IMAGES, model.detect(IMAGES), strict=True):
        assert len(found["boxes"])
        assert (found["scores"].diff() <= 0).all()
        assert found["labels"].min() >= 1
        assert found["labels"].max() <= 4
        height, width = image.shape[1:]
        limit = torch.tensor([width, height, width, height]) + 1e-3
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= limit).all()


@pytest.mark.parametrize(
    "variant", ["double-head", "double-head-fused", "double-fc", "double-conv", "double-head-reverse"]
)
@pytest.mark.parametrize("seed", range(4))
def test_staged_inference_gives_the_detections_of_unstaged(variant: str, seed: int) -> None:
    """The whole model on batches of several images: boxes asked for by owners, and for all proposals as published."""
    rpn, roi = (
        {"proposals_inference": 200},
        {"score_threshold": (0.0, 0.1)[seed % 2], "detections": (30, 100)[seed // 2]},
    )
    staged = fresh_heads(small_model(variant, rpn=rpn, roi=roi)).double().eval()
    whole = small_model(variant, rpn=rpn, roi=roi | {"inference_proposals": "all"}).double().eval()
    whole.load_state_dict(staged.state_dict())
    g = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, 80 + 16 * i, 120, generator=g, dtype=torch.float64) for i in range(1 + seed)]
    for one, other in zip(staged.detect(images), whole.detect(images), strict=True):
        assert len(one["boxes"]) or seed % 2
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(one["scores"], other["scores"])


def test_a_regress_only_branch_sees_positives_and_owners_alone() -> None:
    model = small_model("double-head")
    seen: list[int] = []
    list(model.roi_heads)[1].trunk.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    model.train().losses(IMAGES, TARGETS)
    sampled = 64 * len(IMAGES)
    assert 0 < seen[0] <= sampled / 2
    everything = small_model("double-head", roi={"training_proposals": "all", "sampled": 64, "positive_fraction": 0.5})
    list(everything.roi_heads)[1].trunk.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    everything.train().losses(IMAGES, TARGETS)
    assert seen[1] == sampled
    fresh_heads(model).eval()
    seen.clear()
    model.detect(IMAGES)
    assert 0 < sum(seen) < model.config.rpn.proposals_inference * len(IMAGES)


def test_positives_alone_teach_the_same_as_all_proposals() -> None:
    """With group norm no proposal's features depend on the others': the same loss, and the same gradients."""
    gradients = []
    for seen in ("positives", "all"):
        model = small_model("double-head", roi={"training_proposals": seen, "sampled": 64}).double().train()
        torch.manual_seed(5)
        losses = model.losses([image / 255.0 for image in map(torch.Tensor.double, IMAGES)], TARGETS)
        torch.stack(list(losses.values())).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()} | losses)
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], msg=name)


@pytest.mark.parametrize("head_norm", ["group", "batch"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_odd_images_train_and_predict(variant: str, head_norm: str) -> None:
    """Without objects, without positives, with one-pixel boxes, one-pixel images: finite losses, all gradients."""
    model = small_model(variant, head_norm=head_norm).train()
    nothing = target([], [])
    one_pixel = target([[7, 7, 8, 8], [0, 0, 1, 1]], [1, 2])
    for targets in ([nothing, nothing], [nothing, TARGETS[1]], [one_pixel, nothing]):
        model.zero_grad()
        losses = model.losses(IMAGES, targets)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        assert torch.isfinite(loss)
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval()
    dot = torch.zeros(3, 1, 1, dtype=torch.uint8)
    line = torch.zeros(3, 1, 500, dtype=torch.uint8)
    for found in model.detect([dot, line, IMAGES[0]]):
        assert all(torch.isfinite(found[key]).all() for key in ("boxes", "scores"))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert model.detect([]) == []


@pytest.mark.parametrize("head_norm", ["group", "batch"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_proposals_at_all(variant: str, head_norm: str) -> None:
    model = small_model(variant, head_norm=head_norm)
    levels = [torch.randn(2, 16, 96 // s, 128 // s) for s in (4, 8, 16, 32)]
    none = [torch.zeros(0, 4)] * 2
    for found in model.eval().roi_heads.detections(levels, none, [(96, 128)] * 2, model.options):
        assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) == 0
    for targets in (TARGETS, [target([], [])] * 2):  # objects are proposals too; without them there is nothing at all
        losses = model.train().roi_heads.losses(levels, none, targets, [(96, 128)] * 2)
        assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("training", [True, False])
def test_proposals_are_those_of_torchvision(training: bool) -> None:
    """In float64, where torchvision's way to keep levels apart rounds no IoU."""
    rpn, sizes, anchors = small_model().rpn.train(training), [(160, 240), (160, 213)], [7200, 1800, 450, 120, 36]
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        shape = {"generator": random, "dtype": torch.float64}
        centre = torch.rand(2, sum(anchors), 2, **shape) * torch.tensor([240, 160])
        side = torch.rand(2, sum(anchors), 2, **shape) * 60
        boxes = torch.cat([centre - side / 2, centre + side / 2], dim=2)
        logits = torch.randn(2 * sum(anchors), 1, **shape)
        clipped = torch.stack([rpn.edges.clip(own, size) for own, size in zip(boxes, sizes, strict=True)])
        expected, _ = RegionProposalNetwork.filter_proposals(rpn, clipped, logits, sizes, anchors)
        found, _ = rpn.filter_proposals(boxes, logits, sizes, anchors)
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=0)


def test_classes_of_the_same_box_or_one_box_for_all() -> None:
    model = fresh_heads(small_model("double-head", roi={"class_agnostic": True})).eval()
    regressor = list(model.roi_heads)[1].regressor
    assert regressor is not None
    assert regressor.out_features == 4
    assert len(model.detect(IMAGES)[0]["boxes"])
    assert torch.isfinite(model.train().losses(IMAGES, TARGETS)["conv_regress"])


def test_boxes_come_in_the_pixels_of_the_image_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an image is resized from: the same input, and boxes of the size it had."""
    model = fresh_heads(small_model("double-head")).eval()
    seen = resize(IMAGES[0], 96, 128, True)
    monkeypatch.setattr("doublehead.model.detector.resize", lambda image, *size: seen)
    plain, large = model.detect([seen, torch.zeros(3, 4 * 96, 3 * 128, dtype=torch.uint8)])
    assert len(plain["boxes"]) > 10
    torch.testing.assert_close(large["boxes"], plain["boxes"] * torch.tensor([3.0, 4, 3, 4]))


def test_input_size_keeps_the_shape_within_both_limits() -> None:
    for given, expected in (((300, 300), (96, 96)), ((100, 400), (32, 128)), ((2000, 1), (128, 1))):
        image = torch.zeros(3, *given, dtype=torch.uint8)
        assert resize(image, short_side=96, long_side=128, antialias=True).shape == (3, *expected)


def test_box_loss_is_smooth_l1_over_positives_by_all_sampled() -> None:
    """|d| < 1: d^2 / 2, else |d| - 1/2; only the column of the label counts."""
    deltas = torch.zeros(3, 12)
    deltas[0, 4:8] = torch.tensor([0.5, 2.0, 0.0, 0.0])  # label 1
    deltas[0, 8:] = 100.0
    deltas[2, :] = 100.0  # background
    deltas[1, 8:] = torch.tensor([0.0, 0.0, 0.0, -3.0])  # label 2
    loss = box_loss(deltas, torch.tensor([1, 2, 0]), torch.zeros(3, 4), 64)
    assert float(loss) == pytest.approx((0.125 + 1.5 + 2.5) / 64)


def test_sampling_takes_objects_as_proposals_and_a_quarter_positive() -> None:
    heads = small_model("double-head", roi={"sampled": 16, "positive_fraction": 0.25}).roi_heads.last
    near = torch.tensor([[10.0, 10, 61, 70]]).repeat(20, 1) + torch.rand(20, 4)
    far = torch.tensor([[80.0, 80, 100, 100]]).repeat(40, 1)
    sample = heads.sample([torch.cat([near, far])], [target([[10, 10, 60, 70]], [3])])
    assert (sample.labels[0] == 3).sum() == 4
    assert (sample.labels[0] == 0).sum() == 12
    alone = heads.sample([far], [target([[10, 10, 60, 70]], [3])])
    assert sample.labels[0].tolist()[:4] == [3] * 4  # positives first
    assert (alone.labels[0] == 3).sum() == 1
    torch.testing.assert_close(alone.targets[0][0], torch.zeros(4))


def test_autocast_leaves_losses_and_boxes_in_float32() -> None:
    model = fresh_heads(small_model("double-head-ext"))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train().losses(IMAGES, TARGETS)
        found = model.eval().detect(IMAGES)[0]
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_a_floor_drops_the_proposals_that_the_first_branch_thinks_nothing_of() -> None:
    """The same as leaving them out by hand; the second branch never sees them."""
    torch.manual_seed(0)
    model = fresh_heads(small_model("double-head-ext")).eval()
    heads, head = model.roi_heads, model.roi_heads.last
    levels = [torch.randn(2, 16, 96 // s, 128 // s) for s in (4, 8, 16, 32)]
    corner = torch.rand(2, 60, 2) * 60
    proposals = list(torch.cat([corner, corner + 10 + torch.rand(2, 60, 2) * 30], 2))
    sizes = [(96, 128)] * 2
    first = head.branches[0]
    scores = [first(head.pooler(levels, [p, proposals[1][:0]] if i == 0 else [proposals[0][:0], p]))[0].softmax(1)
              for i, p in enumerate(proposals)]  # fmt: skip
    floor = float(torch.cat(scores)[:, 1:].amax(1).median())
    above = [torch.where((s[:, 1:] > floor).any(1))[0] for s in scores]
    by_hand = heads.detections(levels, [p[a] for p, a in zip(proposals, above, strict=True)], sizes, model.options)
    seen: list[int] = []
    head.branches[1].register_forward_hook(lambda module, given, result: seen.append(len(given[0])))
    found = heads.detections(levels, proposals, sizes, inference_options(model.config, {"score_floor": floor}))
    assert seen == [sum(len(a) for a in above)] == [60]
    for ours, theirs, a in zip(found, by_hand, above, strict=True):
        assert len(ours["boxes"]) > 0
        torch.testing.assert_close(ours["boxes"], theirs["boxes"])
        assert torch.equal(ours["labels"], theirs["labels"])
        assert torch.equal(ours["proposals"], a[theirs["proposals"]])


@pytest.mark.parametrize("variant", ["double-head", "double-conv", "double-head-ext"])
def test_losses_without_positives_leave_running_statistics_alone(variant: str) -> None:
    """A background proposal must not pass through a branch that only regresses: its norms would learn from it."""
    model = small_model(variant, head_norm="batch").train()
    buffers = {k: v.clone() for k, v in model.roi_heads.named_buffers() if k.endswith(("mean", "var", "tracked"))}
    alone = [i for i, branch in enumerate(model.roi_heads) if branch.config.only_regresses]
    losses = model.losses(IMAGES, [target([], [])] * 2)
    torch.stack(list(losses.values())).sum().backward()
    for key, value in model.roi_heads.named_buffers():
        if any(f"branches.{i}." in key for i in alone):
            assert torch.equal(value, buffers[key]), key
    assert all(p.grad is not None and not p.grad.any() for i in alone for p in list(model.roi_heads)[i].parameters())


def test_losses_without_positives_of_a_model_that_does_not_learn() -> None:
    """As `for_inference` leaves it, for a validation loss."""
    model = small_model("double-head", head_norm="group").eval().requires_grad_(False)
    losses = model.losses(IMAGES, [target([], [])] * 2)
    assert float(losses["conv_regress"]) == 0
    assert all(torch.isfinite(value) for value in losses.values())


def test_losses_in_inference_mode_are_those_of_training_but_for_norms() -> None:
    """Group norm has no modes: the same numbers, and no parameter or statistic changes."""
    model = small_model("double-head", head_norm="group")
    values = []
    for training in (True, False):
        torch.manual_seed(0)
        values.append(model.train(training).losses(IMAGES, TARGETS))
    assert values[0].keys() == values[1].keys()
    for name, value in values[0].items():
        torch.testing.assert_close(value, values[1][name], msg=name)
    assert not model.rpn.training


def test_losses_come_beside_detections_as_they_come_alone() -> None:
    model = fresh_heads(small_model()).eval()
    same = [resize(image, 96, 128, True) for image in IMAGES]
    scaled = []
    for truth, new, old in zip(TARGETS, same, IMAGES, strict=True):
        ratios = torch.tensor([old.shape[2] / new.shape[2], old.shape[1] / new.shape[1]] * 2)
        scaled.append({**truth, "boxes": truth["boxes"] / ratios})
    torch.manual_seed(4)
    detections, losses = model.detect_with_losses(IMAGES, TARGETS)
    torch.manual_seed(4)
    for name, loss in model.losses(same, scaled).items():
        torch.testing.assert_close(losses[name], loss.detach())
    for found, alone in zip(detections, model.detect(IMAGES), strict=True):
        assert all(found[key].equal(alone[key]) for key in alone)


def test_targets_follow_the_model_to_its_device() -> None:
    model = small_model("double-head").to("meta")
    with pytest.raises(NotImplementedError, match=r"meta|nonzero"):  # the first step that must look at values
        model.losses(IMAGES, TARGETS)


@pytest.mark.parametrize("objects", [1, 40])
@pytest.mark.parametrize("best_of_each", [True, False])
def test_matching_in_parts_is_torchvisions_matching(
    objects: int, best_of_each: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(objects)
    corner = torch.rand(3000, 2, generator=random) * 100
    boxes = torch.cat([corner, corner + 5 + torch.rand(3000, 2, generator=random) * 40], 1)
    truth = boxes[:objects] + torch.rand(objects, 4, generator=random)
    expected = Matcher(0.7, 0.3, allow_low_quality_matches=best_of_each)(box_iou(truth, boxes))
    for at_once in (2**24, 1000, 1):
        monkeypatch.setattr(matching, "AT_ONCE", at_once)
        assert torch.equal(BoxMatcher(0.7, 0.3, best_of_each)(truth, boxes), expected)


def test_thousands_of_objects_are_matched_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = [0]
    whole = matching.box_iou

    def watched(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        largest[0] = max(largest[0], len(one) * len(other))
        return whole(one, other)

    monkeypatch.setattr(matching, "box_iou", watched)
    monkeypatch.setattr(matching, "AT_ONCE", 20_000)
    corner = torch.rand(2000, 2) * 80
    crowd = {"boxes": torch.cat([corner, corner + 10], 1), "labels": torch.ones(2000, dtype=torch.int64)}
    losses = small_model("double-head").train().losses(IMAGES, [crowd, TARGETS[1]])
    assert all(torch.isfinite(value) for value in losses.values())
    assert 0 < largest[0] <= 20_000
