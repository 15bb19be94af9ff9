"""torchvision's MobileNetV3 as a backbone body, as in torchvision's detectors."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torchvision.models.mobilenetv3 import mobilenet_v3_large
from torchvision.ops.misc import Conv2dNormActivation

from doublehead.common.errors import DoubleheadError
from doublehead.config import BackboneConfig
from doublehead.model.backbone import Body, fill, read_file, torchvisions_weights
from doublehead.model.norms import NORMS

MAPS = (13, 16)
"""Layers that output the feature maps: the first block of stride 32, and the last convolution."""
STAGES = (2, 4, 7, 13)
"""First layers of strides 4, 8, 16 and 32."""
LAYERS = "features."
"""Prefix of these layers' keys in torchvision's classifier."""


class MobileNetBody(Body):
    """MobileNetV3-Large without its classifier: two maps of stride 32.

    torchvision builds its pyramid on them: features of the second map, with 960 channels, are added to the first, with
    160. RoIs are pooled from the first.

    Args:
        config: norm and eps.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.name = config.name
        if config.norm == "group":
            raise DoubleheadError(
                f"model.backbone.norm=group: {self.name} has the norms of its weights; choose frozen or batch"
            )
        layers = mobilenet_v3_large(norm_layer=partial(NORMS[config.norm], eps=config.own.norm_eps)).features
        for number, layer in enumerate(layers):
            self.add_module(str(number), layer)  # the keys that torchvision's detectors have
        last = layers[MAPS[1]]
        assert isinstance(last, Conv2dNormActivation)
        self.channels = layers[MAPS[0]].out_channels, last.out_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to two maps of stride 32."""
        x, maps = images, []
        for number, layer in enumerate(self.children()):
            x = layer(x)
            if number in MAPS:
                maps.append(x)
        return maps

    def stages(self) -> list[list[nn.Module]]:
        """The layers of stride 2, 4, 8, 16 and 32."""
        layers = list(self.children())
        ends = (0, *STAGES, len(layers))
        return [layers[start:end] for start, end in pairwise(ends)]

    def load(self, weights: str) -> None:
        """Load torchvision's weights for `imagenet`, or those of a file."""
        state = torchvisions_weights(self.name) if weights == "imagenet" else read_file(weights)
        own = {key.removeprefix(LAYERS): value for key, value in state.items() if key.startswith(LAYERS)}
        fill(self, own or state, weights, self.name)
