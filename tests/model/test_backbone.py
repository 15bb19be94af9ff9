from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from doublehead.common.errors import DoubleheadError
from doublehead.config import BackboneConfig, FPNConfig
from doublehead.model.backbone import Backbone

FPN = FPNConfig(channels=16)


def backbone(**values: Any) -> torch.nn.Module:
    return Backbone(BackboneConfig(name="resnet18", **values), FPN, pretrained=True)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_pyramid_has_strides_4_to_64(name: str) -> None:
    with torch.device("meta"):
        maps = Backbone(BackboneConfig(name=name), FPN, False)(torch.zeros(1, 3, 128, 256))
    assert {k: tuple(v.shape[1:]) for k, v in maps.items()} == {
        "0": (16, 32, 64), "1": (16, 16, 32), "2": (16, 8, 16), "3": (16, 4, 8), "pool": (16, 2, 4)
    }  # fmt: skip


@pytest.mark.parametrize(("stages", "frozen"), [(5, []), (3, ["conv1", "layer1"]), (0, "all")])
def test_frozen_stages_do_not_learn(stages: int, frozen: Any) -> None:
    body = backbone(weights=None, trainable_stages=stages).body
    stuck = {name.split(".")[0] for name, p in body.named_parameters() if not p.requires_grad}
    assert stuck == ({"conv1", "layer1", "layer2", "layer3", "layer4"} if frozen == "all" else set(frozen))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_local_file(tmp_path: Path, suffix: str) -> None:
    state = torchvision.models.resnet18().state_dict()
    path = tmp_path / f"resnet18{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    body = backbone(weights=str(path)).body
    assert torch.equal(body.state_dict()["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"])
    assert torch.equal(body.state_dict()["bn1.running_var"], state["bn1.running_var"])


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(DoubleheadError, match="not weights of a resnet18"):
        backbone(weights=str(path))
    torch.save(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(DoubleheadError, match="not weights of a resnet18"):
        backbone(weights=str(path))
    with pytest.raises(DoubleheadError, match="no such file"):
        backbone(weights=str(tmp_path / "absent.pth"))


class Marker:
    """Pickled, it would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_code_in_a_weights_file_does_not_run(tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    torch.save({"conv1.weight": Marker(str(marker))}, path)
    with pytest.raises(DoubleheadError, match=r"evil\.pth"):
        backbone(weights=str(path))
    assert not marker.exists()


def test_without_network_the_sentence_names_the_file_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(DoubleheadError, match=r"resnet18-f37072fd\.pth.*model\.backbone\.weights"):
        backbone(weights="imagenet")


@pytest.mark.parametrize(
    ("backbone_norm", "fpn_norm", "kind"),
    [
        ("frozen", "auto", None),
        ("group", "auto", torch.nn.GroupNorm),
        ("group", "none", None),
        ("frozen", "batch", torch.nn.BatchNorm2d),
        ("batch", "group", torch.nn.GroupNorm),
    ],
)
def test_the_pyramid_has_a_norm_of_its_own(backbone_norm: Any, fpn_norm: Any, kind: type | None) -> None:
    config = BackboneConfig(name="resnet18", norm=backbone_norm)
    fpn = Backbone(config, FPNConfig(channels=16, norm=fpn_norm), pretrained=False).fpn
    blocks = [block for blocks in (fpn.inner_blocks, fpn.layer_blocks) for block in blocks]
    assert len(blocks) == 8
    assert all([*map(type, list(block)[1:])] == [] if kind is None else isinstance(block[1], kind) for block in blocks)
