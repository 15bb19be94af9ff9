"""A backbone and a trunk of a user's own: a row each, and they train, predict and come back from a checkpoint."""

from typing import Any

import pytest
from torch import Tensor, nn

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.common.strict import Count, Strict
from doublehead.config import BackboneConfig, FPNConfig
from doublehead.evaluation.analysis.analyze import analyze
from doublehead.evaluation.analysis.proposals import Budget
from doublehead.model.backbone import Backbone, Body
from doublehead.model.checkpoint import load_model
from doublehead.model.parts import BACKBONES, TRUNKS, BackboneRow, TrunkRow
from doublehead.model.trunks import Trunk
from small import SMALL


class PlainConfig(Strict):
    width: Count = 8


class Plain(Body):
    """Five strided convolutions, the first of which is the stem."""

    multiple = 64

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width = config.own.width
        c2, c3, c4, c5 = self.channels = width, 2 * width, 2 * width, 4 * width
        inputs, outputs = (3, c2, c2, c3, c4), (c2, c2, c3, c4, c5)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in zip(inputs, outputs, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        assert images.shape[2] % 64 == images.shape[3] % 64 == 0
        maps, x = [], images
        for step in self.steps:
            x = step(x)
            maps.append(x)
        return maps[1:]

    def stages(self) -> list[list[nn.Module]]:
        return [[step] for step in self.steps]

    def load(self, weights: str) -> None:
        assert weights == "ones"
        for p in self.parameters():
            nn.init.ones_(p)


class PooledConfig(Strict):
    width: Count = 24


class Pooled(Trunk):
    """A linear layer on the mean over positions."""

    def __init__(self, channels: int, resolution: int, config: PooledConfig, norm: str) -> None:
        super().__init__()
        self.width = config.width
        self.layer = nn.Linear(channels, config.width)

    def forward(self, rois: Tensor) -> Tensor:
        return self.layer(rois.mean((2, 3))).relu()


SETTINGS: dict[str, Any] = SMALL | {
    "model.backbone.name": "plain",
    "model.backbone.plain.width": 4,
    "model.backbone.norm": "batch",
    "model.branches.0.trunk": "pooled",
    "model.pooled_head.width": 12,
    "train.steps": 3,
    "train.epochs": None,
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "plain", BackboneRow(Plain, "plain", PlainConfig, mean=(0.5, 0.5, 0.5)))
    monkeypatch.setitem(TRUNKS, "pooled", TrunkRow(Pooled, PooledConfig, roi_scale=1.2))


def test_they_train_predict_and_come_back(dataset, tmp_path, monkeypatch):
    best = doublehead.train(dataset, "double-head-tiny", tmp_path / "run", settings=SETTINGS)
    model, checkpoint = load_model(best)
    assert type(model.backbone.body) is Plain
    assert [type(branch.trunk).__name__ for branch in model.roi_heads] == ["Pooled", "ConvHead"]
    assert checkpoint.config.input.mean == (0.5, 0.5, 0.5)
    assert checkpoint.config.input.std == (0.229, 0.224, 0.225)
    assert [branch.scale for branch in checkpoint.config.branches] == [1.2, 1.3]
    assert (model.backbone.body.channels[0], next(iter(model.roi_heads)).trunk.width) == (4, 12)
    doublehead.load(best, device="cpu").predict(next((dataset / "val").iterdir()))
    assert doublehead.resume(tmp_path / "run") == best

    monkeypatch.delitem(BACKBONES, "plain")
    with pytest.raises(DoubleheadError, match=rf"{best.name}: .*unknown backbone `plain`"):
        doublehead.load(best)


def test_other_models_do_not_mention_them(dataset, tmp_path, monkeypatch):
    best = doublehead.train(dataset, "double-head-tiny", tmp_path / "run", settings=SMALL | {"train.steps": 1})
    monkeypatch.delitem(BACKBONES, "plain")
    monkeypatch.delitem(TRUNKS, "pooled")
    doublehead.load(best, device="cpu")


def test_weights_come_in_through_the_body_and_stages_freeze(tmp_path):
    config = BackboneConfig.model_validate({"name": "plain", "weights": "ones", "trainable_stages": 4})
    body = Backbone(config, FPNConfig(channels=8), pretrained=True).body
    assert all(bool((p == 1).all()) for p in body.parameters())
    learning = {name.split(".")[1] for name, p in body.named_parameters() if p.requires_grad}
    assert learning == {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    "setting",
    [{"model.backbone.plain.depth": 3}, {"model.pooled_head.width": 0}, {"model.other_head.width": 3}],
)
def test_their_settings_are_checked(dataset, tmp_path, setting):
    with pytest.raises(DoubleheadError, match=next(iter(setting)).replace(".", r"\.")[:15]):
        doublehead.train(dataset, "double-head-tiny", tmp_path / "run", settings=SETTINGS | setting)


def test_a_trunk_that_tells_nothing_of_positions_is_analysed_without_them(dataset, tmp_path):
    best = doublehead.train(dataset, "double-head-tiny", tmp_path / "run", settings=SETTINGS)
    few = Budget(images=2, objects=3, windows=40)
    (model,) = analyze(best, dataset, output=tmp_path / "report", budget=few, workers=0, device="cpu").models
    assert {correlation.branch for correlation in model.correlations} == {None, "conv"}
    assert {curve.branch for curve in model.scores + model.boxes} == {"pooled", "conv"}
