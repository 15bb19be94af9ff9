"""ResNet with a feature pyramid, from torchvision's parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from doublehead.common.errors import DoubleheadError
from doublehead.config import BackboneConfig
from doublehead.model.trunks import group_norm
from doublehead.model.weights import read_weights

NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen": lambda channels, eps: FrozenBatchNorm2d(channels, eps=eps),
    "batch": lambda channels, eps: nn.BatchNorm2d(channels, eps=eps),
    "group": lambda channels, eps: group_norm(channels),
}
STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


class StrideFirst(Bottleneck):
    """torchvision's bottleneck with the stride in its first convolution, 1x1, as in the first published ResNets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


BOTTLENECKS = {"3x3": Bottleneck, "1x1": StrideFirst}
RESNETS = {
    "resnet18": ((2, 2, 2, 2), True),
    "resnet34": ((3, 4, 6, 3), True),
    "resnet50": ((3, 4, 6, 3), False),
    "resnet101": ((3, 4, 23, 3), False),
}
"""Blocks of each stage, and whether they are basic ones of two convolutions or bottlenecks of three."""


class _ResNet(ResNet):
    """torchvision's, whose stem may have other than 64 channels; the stages, 64 to 512 there, go along."""

    def __init__(self, stem: int, *args: Any, **kwargs: Any) -> None:
        self.stem = stem
        super().__init__(*args, **kwargs)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64 != self.stem:  # the first stage: torchvision has just built a stem of 64
            self.inplanes = self.stem
            self.conv1 = nn.Conv2d(3, self.stem, 7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(self.stem)
        return super()._make_layer(block, planes * self.stem // 64, *args, **kwargs)


def build_backbone(config: BackboneConfig, pretrained: bool) -> BackboneWithFPN:
    """ResNet-FPN giving maps "0".."3" (P2..P5) and "pool" (P6), `config.fpn_channels` wide.

    Args:
        config: depth, width, norm, weights and frozen stages.
        pretrained: whether to fetch `config.weights`; False where a checkpoint will fill the layers.
    """
    blocks, basic = RESNETS[config.name]
    block = BasicBlock if basic else BOTTLENECKS[config.stride_in]
    body: Any = _ResNet(
        config.width,
        block,
        blocks,
        norm_layer=partial(NORMS[config.norm], eps=config.norm_eps),
        zero_init_residual=config.weights is None,
    )
    if pretrained and config.weights is not None:
        _load(body, config.name, config.weights)
    for stage in STAGES[: 5 - config.trainable_stages]:
        for layer in stage:
            getattr(body, layer).requires_grad_(False)
    widths = [config.width * block.expansion * 2**i for i in range(4)]
    return BackboneWithFPN(
        body,
        return_layers={f"layer{i + 1}": str(i) for i in range(4)},
        in_channels_list=widths,
        out_channels=config.fpn_channels,
        extra_blocks=LastLevelMaxPool(),
        norm_layer=group_norm if config.norm == "group" else None,
    )


def _load(body: nn.Module, name: str, weights: str) -> None:
    """Fill the ResNet with ImageNet weights, from torchvision or from a file.

    Raises:
        DoubleheadError: the weights cannot be fetched or read, or are of another network.
    """
    if weights == "imagenet":
        entry = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        try:
            state = entry.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise DoubleheadError(
                f"ImageNet weights could not be downloaded from {entry.url} ({error}); fetch that file by hand and "
                "give its path as model.backbone.weights, or set model.backbone.weights=null to train from scratch"
            ) from error
    else:
        try:
            state, _ = read_weights(Path(weights))
        except DoubleheadError as error:
            raise DoubleheadError(f"model.backbone.weights={error}") from error
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    try:
        missing, unexpected = body.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DoubleheadError(f"model.backbone.weights={weights}: these are not weights of a {name}") from error
    missing = [k for k in missing if not k.startswith("fc.") and not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise DoubleheadError(
            f"model.backbone.weights={weights}: these are not weights of a {name} with this norm "
            f"(missing: {missing[:3]}, left over: {unexpected[:3]})"
        )
