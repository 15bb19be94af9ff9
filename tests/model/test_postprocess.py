import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from doublehead.config import InferenceOptions, inference_options
from doublehead.model import postprocess
from doublehead.model.postprocess import (
    FIRST_ROUND,
    Scored,
    class_nms,
    detect,
    detect_in_fixed_sizes,
    detect_in_one_round,
    fuse,
)
from doublehead.model.presets import preset

SIZE = (200, 300)
USUAL = inference_options(preset("double-head-tiny"))


def asked(**changes: Any) -> InferenceOptions:
    return USUAL.model_copy(update=changes)


class Known(Scored):
    """Proposals whose boxes are known; it counts how many are asked for."""

    def __init__(self, scores: list[Tensor], boxes: list[Tensor], staged: bool) -> None:
        places = [torch.arange(len(s)) for s in scores]
        super().__init__([torch.zeros(len(s), 4) for s in scores], places, scores, staged)
        self.known, self.count = boxes, 0

    def boxes(self, chosen: list[Tensor]) -> list[Tensor]:
        self.count += sum(len(c) for c in chosen)
        return [b[c] for b, c in zip(self.known, chosen, strict=True)]


def scene(seed: int, images: int, classes: int, spread: float) -> tuple[list[Tensor], list[Tensor]]:
    """Scores (N, C + 1) and boxes (N, C + 1, 4) of random proposals, crowded so that NMS has work."""
    g = torch.Generator().manual_seed(seed)
    scores, boxes = [], []
    for _ in range(images):
        n = int(torch.randint(0, 600, (), generator=g))
        scores.append((torch.randn(n, classes + 1, generator=g) * spread).softmax(1))
        corner = torch.rand(n, classes + 1, 2, generator=g) * torch.tensor([280.0, 180.0]) - 10
        side = torch.rand(n, classes + 1, 2, generator=g) * 60
        boxes.append(torch.cat([corner, corner + side], dim=2))
    return scores, boxes


def run(
    scores: list[Tensor], boxes: list[Tensor], options: InferenceOptions, staged: bool
) -> tuple[list[dict[str, Tensor]], int]:
    """Detections, and how many boxes were asked for."""
    scored = Known(scores, boxes, staged)
    return detect(scored, [SIZE] * len(scores), options), scored.count


def by_definition(scores: Tensor, boxes: Tensor, config: InferenceOptions) -> list[tuple[int, int]]:
    """(proposal, class) of the detections: greedy NMS per class, written out one candidate at a time."""
    candidates = [
        (float(scores[p, c]), p, c)
        for p in range(len(scores))
        for c in range(1, scores.shape[1])
        if scores[p, c] > config.score_threshold
    ]
    kept: list[tuple[int, int, Tensor]] = []
    limit = torch.tensor([SIZE[1], SIZE[0]]).repeat(2)
    for _, p, c in sorted(candidates, key=lambda item: -item[0]):
        box = torch.minimum(boxes[p, c].clamp(min=0), limit)
        if ((box[2:] - box[:2]) < 1e-2).any():
            continue
        same = [b for _, kc, b in kept if kc == c or config.nms_across_classes]
        if not same or float(box_iou(box[None].double(), torch.stack(same).double()).max()) <= config.nms_iou:
            kept.append((p, c, box))
    return [(p, c) for p, c, _ in kept[: config.detections]]


@pytest.mark.parametrize("seed", range(60))
def test_staged_gives_the_same_as_all_at_once(seed: int) -> None:
    """Many random batches, among them empty images, ones with few candidates and ones with thousands."""
    classes = 1 + seed % 7
    config = asked(
        detections=(1, 20, 100, 300)[seed % 4],
        score_threshold=(0.0, 0.05, 0.3)[seed % 3],
        nms_iou=(0.3, 0.5)[seed % 2],
        nms_across_classes=seed % 5 == 0,
    )
    scores, boxes = scene(seed, images=1 + seed % 4, classes=classes, spread=(0.1, 1.0, 4.0)[seed // 20])
    staged, _ = run(scores, boxes, config, staged=True)
    whole, _ = run(scores, boxes, config, staged=False)
    for one, other in zip(staged, whole, strict=True):
        for key in one:
            assert torch.equal(one[key], other[key])


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_is_greedy_nms_within_each_class_or_across_all(seed: int, across: bool) -> None:
    config = asked(score_threshold=0.2, detections=40, nms_across_classes=across)
    scores, boxes = scene(seed, images=2, classes=3, spread=1.5)
    found, _ = run(scores, boxes, config, staged=True)
    for result, s, b in zip(found, scores, boxes, strict=True):
        pairs = list(zip(result["proposals"].tolist(), result["labels"].tolist(), strict=True))
        assert pairs == by_definition(s, b, config)
        assert (result["scores"][:-1] >= result["scores"][1:]).all()


def test_boxes_are_asked_for_only_where_they_can_matter() -> None:
    n = 1000
    scores = torch.zeros(n, 3)
    scores[:, 1] = torch.linspace(0.9, 0.1, n)
    corner = torch.arange(n).float()[:, None] * torch.tensor([0.25, 0.15])  # far apart enough: no NMS at IoU 1
    boxes = torch.cat([corner, corner + 20], dim=1)[:, None].expand(n, 3, 4)
    config = asked(detections=100, nms_iou=1.0)
    found, count = run([scores], [boxes], config, staged=True)
    assert len(found[0]["boxes"]) == 100
    assert count == FIRST_ROUND
    scores[30:, 1] = 0.01
    _, count = run([scores], [boxes], config, staged=True)
    assert count == 30


@pytest.mark.parametrize("staged", [True, False])
def test_classes_that_are_not_looked_for_take_no_place(staged: bool) -> None:
    """Fifty objects of the second class under a hundred better ones of the first."""
    scores = torch.zeros(150, 3)
    scores[:100, 1], scores[100:, 2] = 0.9, 0.3
    corner = torch.arange(150.0)[:, None] * torch.tensor([1.8, 1.2])
    boxes = torch.cat([corner, corner + 1], dim=1)[:, None].expand(150, 3, 4)
    (everything,), _ = run([scores], [boxes], asked(detections=100), staged)
    assert set(everything["labels"].tolist()) == {1}
    (found,), count = run([scores], [boxes], asked(detections=100, classes=(2,)), staged)
    assert found["labels"].tolist() == [2] * 50
    assert count == 50


def test_no_candidates() -> None:
    found, count = run(
        [torch.zeros(0, 4), torch.zeros(5, 4)], [torch.zeros(0, 4, 4), torch.zeros(5, 4, 4)], USUAL, True
    )
    assert count == 0
    assert all(len(result[key]) == 0 for result in found for key in ("boxes", "scores", "labels"))
    assert found[0]["boxes"].shape == (0, 4)


def test_classes_never_suppress_each_other() -> None:
    box = torch.tensor([[0.0, 0, 1000, 1000], [0, 0, 1000, 1000], [1, 1, 1000, 1000]])
    kept = class_nms(box, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 2, 1]), 0.5)
    assert kept.tolist() == [0, 1]


def test_fusion_rules() -> None:
    """Complementary: s_fc + s_conv (1 - s_fc) (paper, section 4.3)."""
    fc, conv = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.5, 0.5]])
    torch.testing.assert_close(fuse([fc, conv], "complementary"), fc + conv * (1 - fc))
    torch.testing.assert_close(fuse([fc, conv], "average"), torch.tensor([[0.35, 0.65]]))
    torch.testing.assert_close(fuse([fc, conv], "maximum"), torch.tensor([[0.5, 0.8]]))
    assert fuse([fc], "average") is fc


@pytest.mark.parametrize("seed", range(30))
def test_in_one_round_gives_the_same(seed: int) -> None:
    """And of some owners only, what is found where the other proposals are background."""
    config = asked(detections=(20, 100)[seed % 2], score_threshold=(0.0, 0.05, 0.3)[seed % 3])
    (scores,), (boxes,) = scene(seed, images=1, classes=1 + seed % 5, spread=(0.1, 1.0, 2.0)[seed // 10])
    best = scores[:, 1:].amax(1).argsort(descending=True)
    for most in (None, 50):
        found = detect_in_one_round(Known([scores], [boxes], False), SIZE, config, most)
        left = scores.index_fill(0, best[most or len(best) :], 0.0)
        (expected,), _ = run([left], [boxes], config, staged=False)
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


@pytest.mark.parametrize("seed", range(30))
def test_in_fixed_sizes_gives_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing for filling, nor for owners beyond those asked for; places that are left have score 0."""
    config = asked(
        detections=(20, 100)[seed % 2],
        score_threshold=(0.0, 0.05, 0.3)[seed % 3],
        nms_across_classes=seed % 5 == 0,
    )
    scores, boxes = scene(seed, images=2, classes=1 + seed % 5, spread=(0.1, 1.0, 2.0)[seed // 10])
    monkeypatch.setattr(postprocess, "CANDIDATES", max(postprocess.CANDIDATES, *(s[:, 1:].numel() for s in scores)))
    for most in (None, 50):
        real = [torch.rand(len(s)) < 0.9 for s in scores]
        scored = Known(scores, boxes, most is not None)
        found = detect_in_fixed_sizes(scored, real, [SIZE] * 2, config, most)
        left = [torch.where(r[:, None], s, 0.0) for s, r in zip(scores, real, strict=True)]
        best = [s[:, 1:].amax(1).argsort(descending=True)[most or len(s) :] for s in left]
        left = [s.index_fill(0, b, 0.0) for s, b in zip(left, best, strict=True)]
        for each, expected in zip(found, run(left, boxes, config, staged=False)[0], strict=True):
            there = each["scores"] > 0
            assert torch.equal(there.sort(descending=True).values, there)
            for key in ("boxes", "scores", "labels"):
                assert torch.equal(each[key][there], expected[key]), key
                assert not each[key][~there].any()


def soft_by_definition(scores: Tensor, boxes: Tensor, config: InferenceOptions) -> list[tuple[float, int, int]]:
    """(score, proposal, class) by the pseudo-code of Bodla et al. 2017, figure 3, within each class."""
    limit = torch.tensor([SIZE[1], SIZE[0]]).repeat(2)
    least = dict(config.class_thresholds)
    kept = []
    for c in range(1, scores.shape[1]):
        threshold = least.get(c, config.score_threshold)
        b = {p: torch.minimum(boxes[p, c].clamp(min=0), limit).double() for p in range(len(scores))}
        s = {p: float(scores[p, c]) for p in b if scores[p, c] > threshold and not ((b[p][2:] - b[p][:2]) < 1e-2).any()}
        while s:
            m = max(s, key=s.__getitem__)
            kept.append((s.pop(m), m, c))
            for i in s:
                iou = float(box_iou(b[m][None], b[i][None]))
                if config.nms == "gaussian":
                    s[i] *= math.exp(-(iou**2) / config.nms_sigma)
                elif iou > config.nms_iou:
                    s[i] *= 1 - iou
            s = {p: score for p, score in s.items() if score > threshold}
    return sorted(kept, reverse=True)[: config.detections]


@pytest.mark.parametrize("how", ["linear", "gaussian"])
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.long if seed in (1, 2, 3) else ()) for seed in range(6)]
)
def test_soft_nms_is_that_of_bodla_et_al(seed: int, how: str) -> None:
    config = asked(
        nms=how,
        nms_sigma=(0.3, 0.5, 1.0)[seed % 3],
        nms_iou=(0.3, 0.5)[seed % 2],
        score_threshold=0.2,
        detections=60,
        class_thresholds=((2, 0.4),) if seed > 2 else (),
    )
    scores, boxes = scene(seed, images=2, classes=3, spread=1.5)
    found, _ = run(scores, boxes, config, staged=True)
    for result, s, b in zip(found, scores, boxes, strict=True):
        expected = soft_by_definition(s, b, config)
        assert result["scores"].tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-6)
        pairs = zip(result["proposals"].tolist(), result["labels"].tolist(), strict=True)
        assert list(pairs) == [(p, c) for _, p, c in expected]


@pytest.mark.parametrize("how", ["linear", "gaussian"])
@pytest.mark.parametrize("seed", range(20))
def test_staged_soft_nms_gives_the_same_as_all_at_once(seed: int, how: str) -> None:
    config = asked(
        nms=how,
        detections=(1, 20, 100)[seed % 3],
        score_threshold=(0.0, 0.05, 0.3)[seed % 3],
        nms_across_classes=seed % 5 == 0,
    )
    scores, boxes = scene(seed, images=1 + seed % 4, classes=1 + seed % 7, spread=(0.1, 4.0)[seed // 10])
    staged, few = run(scores, boxes, config, staged=True)
    whole, many = run(scores, boxes, config, staged=False)
    assert few <= many
    for one, other in zip(staged, whole, strict=True):
        for key in one:
            assert torch.equal(one[key], other[key])


def test_a_class_has_a_threshold_of_its_own() -> None:
    scores, boxes = scene(3, images=2, classes=3, spread=1.5)
    plain, _ = run(scores, boxes, asked(score_threshold=0.1, detections=10_000), staged=True)
    config = asked(score_threshold=0.3, class_thresholds=((1, 0.1), (3, 0.6)), detections=10_000)
    found, _ = run(scores, boxes, config, staged=True)
    for result, all_of_them in zip(found, plain, strict=True):
        least = torch.tensor([1.0, 0.1, 0.3, 0.6])[all_of_them["labels"]]
        for key in result:
            assert torch.equal(result[key], all_of_them[key][all_of_them["scores"] > least])
