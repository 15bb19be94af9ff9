from pathlib import Path
from typing import Any

import pytest
import torch
from whole_runs import SHORT

import doublehead
from doublehead.config import ModelConfig, TrainConfig
from doublehead.model.checkpoint import load_checkpoint
from doublehead.model.detector import Detector
from doublehead.model.presets import preset_values
from doublehead.training.recipes import resolve
from doublehead.training.schedule import learning_rate
from doublehead.training.state import make_optimizer
from doublehead.training.study.plan import read_plan
from small import rows

PLANS = Path(__file__).resolve().parents[2] / "studies"


def test_the_published_recipe():
    """Reference: SGD 0.02 for 16 images, warm-up over 500 steps from a third, tenfold falls at 60k and 80k of 90k."""
    train = resolve("double-head-r50", "coco-1x").train
    assert (train.optimizer, train.momentum, train.weight_decay, train.batch_size) == ("sgd", 0.9, 1e-4, 16)
    assert train.steps == 90_000
    expected = {
        0: 0.02 / 3,
        250: 0.02 * 2 / 3,
        500: 0.02,
        59_999: 0.02,
        60_000: 0.002,
        79_999: 0.002,
        80_000: 0.0002,
        89_999: 0.0002,
    }
    for step, rate in expected.items():
        assert learning_rate(train, step, 90_000) == pytest.approx(rate), step


@pytest.mark.parametrize(
    ("recipe", "steps", "batch", "decay", "expected"),
    [
        ("coco-3x", 270_000, 16, 1e-4, {0: 2e-5, 1000: 0.02, 210_000: 2e-3, 249_999: 2e-3, 250_000: 2e-4}),
        ("coco-lsj", 184_375, 64, 4e-5, {0: 6.7e-3, 500: 0.1, 163_888: 0.1, 163_889: 0.01, 177_546: 1e-3}),
    ],
)
def test_the_recipes_of_the_baselines(
    recipe: str, steps: int, batch: int, decay: float, expected: dict[int, float]
) -> None:
    """detectron2's `faster_rcnn_R_50_FPN_3x.yaml` and `mask_rcnn_R_50_FPN_100ep_LSJ.py`."""
    train = resolve("double-head-r50", recipe).train
    assert (train.steps, train.batch_size, train.weight_decay) == (steps, batch, decay)
    for step, rate in expected.items():
        assert learning_rate(train, step, steps) == pytest.approx(rate), step


def test_the_plan_of_large_scale_jitter_runs(dataset: Path, tmp_path: Path) -> None:
    plan = read_plan(PLANS / "coco-lsj.yaml")
    small = {"data.augment.lsj.size": 64, "train.epochs": None, "train.steps": 2, "train.batch_size": 2}
    heads = {key: value for key, value in SHORT.items() if key.startswith(("model.", "data."))}
    heads = {key: value for key, value in heads.items() if "norm" not in key and "augment" not in key}
    others = {"train.device": "cpu", "train.precision": "fp32", "data.val_split": None}
    settings = dict(plan.settings) | heads | small | others
    config = resolve("double-head-r18", plan.recipe, settings=settings)
    assert [step.name for step in config.data.augment.steps] == ["lsj", "flip"]
    best = doublehead.train(dataset, "double-head-r18", tmp_path / "run", recipe=plan.recipe, settings=settings)
    assert load_checkpoint(best).config.fpn.norm == "batch"
    assert len(rows(tmp_path / "run" / "training.csv")) == 1  # the last step


def test_cosine_falls_from_the_peak_to_nearly_nothing():
    train = TrainConfig(schedule="cosine", lr=0.4, warmup_steps=10, warmup_start=0.1)
    rates = [learning_rate(train, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[10] == max(rates) == pytest.approx(0.4, rel=1e-3)
    assert rates[500] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.4e-5


def test_milestones_follow_the_length_of_the_run():
    train = TrainConfig(lr=1.0, warmup_steps=0, milestones=(0.5, 0.75))
    assert [learning_rate(train, step, 8) for step in range(8)] == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)


RESNET = {"name": "resnet18", "norm": "batch", "weights": None, "trainable_stages": 5, "resnet": {"width": 8}}
MOBILENET = {"name": "mobilenet_v3_large", "norm": "batch", "weights": None, "trainable_stages": 5}


def small(backbone: dict[str, Any]) -> Detector:
    parts = {"backbone": backbone, "rpn": {}, "fpn": {"channels": 8}, "fc_head": {"width": 8}}
    return Detector(ModelConfig.model_validate(preset_values("single-fc-tiny") | parts), 2)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("backbone", [RESNET, MOBILENET], ids=lambda backbone: backbone["name"])
def test_each_stage_learns_more_slowly_than_the_next(optimizer: str, backbone: dict[str, Any]) -> None:
    model = small(backbone)
    config = TrainConfig(optimizer=optimizer, lr=0.5, layer_decay=0.5, weight_decay=0.1)
    groups = make_optimizer(model, config).param_groups
    shares = {p: group["share"] for group in groups for p in group["params"]}
    assert shares.keys() == set(model.parameters())
    assert groups[0]["share"] == 1  # whose rate is recorded
    assert {shares[p] for part in (model.backbone.fpn, model.rpn, model.roi_heads) for p in part.parameters()} == {1}
    for stage, share in zip(model.backbone.body.stages(), (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2), strict=True):
        assert {shares[p] for layer in stage for p in layer.parameters()} == {share}
    decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
    assert {decays[p] for p in model.parameters() if p.ndim > 1} == {0.1}
    assert {decays[p] for p in model.parameters() if p.ndim <= 1} == ({0.1} if optimizer == "sgd" else {0})


def test_frozen_stages_and_a_decay_of_one_leave_the_groups_as_they_are() -> None:
    model = small({**RESNET, "trainable_stages": 1})
    groups = make_optimizer(model, TrainConfig(layer_decay=0.5)).param_groups
    assert [group["share"] for group in groups] == [1, 0.5]
    (only,) = make_optimizer(model, TrainConfig()).param_groups
    assert list(map(id, only["params"])) == [id(p) for p in model.parameters() if p.requires_grad]


def test_the_rate_of_a_run_is_shared_out_and_resumes(dataset: Path, tmp_path: Path) -> None:
    """Stages hardly move at a decay of nearly nothing; a stopped run ends as one that was not."""
    settings = SHORT | {"data.val_split": None, "train.ema": None, "train.steps": 2, "train.save_minutes": 1e-6}
    settings |= {"train.layer_decay": 1e-6, "train.optimizer": "sgd", "train.lr": 0.1, "train.weight_decay": 0.0}
    whole = doublehead.train(dataset, "single-fc-tiny", tmp_path / "whole", settings=settings)
    doublehead.train(dataset, "single-fc-tiny", tmp_path / "run", settings=settings | {"train.steps": 1})
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 1\n", "steps: 2\n"))
    again = doublehead.resume(tmp_path / "run")
    first, second = load_checkpoint(whole).weights, load_checkpoint(again).weights
    assert rows(tmp_path / "whole" / "training.csv")[0]["lr"] == pytest.approx(1e-3)  # a hundredth, before the share
    assert first.keys() == second.keys()
    torch.manual_seed(0)
    fresh = Detector(load_checkpoint(whole).config, len(load_checkpoint(whole).categories)).state_dict()
    key = "backbone.body.layer1.0.conv1.weight"
    torch.testing.assert_close(first[key], fresh[key], rtol=0, atol=1e-6)
    assert not torch.equal(first["backbone.fpn.inner_blocks.0.0.weight"], fresh["backbone.fpn.inner_blocks.0.0.weight"])
