"""torchvision's ResNets as backbone bodies."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from doublehead.config import BackboneConfig
from doublehead.model.backbone import Body, fill, read_file, torchvisions_weights
from doublehead.model.norms import NORMS


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
"""Blocks per stage, and their kind: basic blocks of two convolutions, or bottlenecks of three."""


class _ResNet(ResNet):
    """torchvision's ResNet with any number of stem channels; stages, 64 to 512 wide in the original, scale with it."""

    def __init__(self, stem: int, *args: Any, **kwargs: Any) -> None:
        self.stem = stem
        super().__init__(*args, **kwargs)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64 != self.stem:  # the first stage: torchvision has just built a stem of 64
            self.inplanes = self.stem
            self.conv1 = nn.Conv2d(3, self.stem, 7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(self.stem)
        return super()._make_layer(block, planes * self.stem // 64, *args, **kwargs)


class ResNetBody(Body):
    """A ResNet without its classifier.

    Args:
        config: depth, width and norm.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.name = config.name
        blocks, basic = RESNETS[config.name]
        block = BasicBlock if basic else BOTTLENECKS[config.own.stride_in]
        net = _ResNet(
            config.own.width,
            block,
            blocks,
            norm_layer=partial(NORMS[config.norm], eps=config.own.norm_eps),
            zero_init_residual=config.weights is None,
        )
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        c2, c3, c4, c5 = (config.own.width * block.expansion * 2**i for i in range(4))
        self.channels = c2, c3, c4, c5

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to the outputs of the four stages."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def stages(self) -> list[list[nn.Module]]:
        """The stem, then the four stages."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def load(self, weights: str) -> None:
        """Load torchvision's weights for `imagenet`, or those of a file."""
        state = torchvisions_weights(self.name) if weights == "imagenet" else read_file(weights)
        fill(self, {key: value for key, value in state.items() if not key.startswith("fc.")}, weights, self.name)
