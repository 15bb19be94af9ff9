"""The backbone: a body that gives maps of strides 4, 8, 16 and 32, and a feature pyramid on top of it."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from doublehead.common.errors import DoubleheadError
from doublehead.common.tables import imported
from doublehead.config import BackboneConfig, FPNConfig
from doublehead.model.norms import NORMS
from doublehead.model.parts import BACKBONES
from doublehead.model.recompute import recomputed
from doublehead.model.weights import read_weights

COUNTER = "num_batches_tracked"


class Body(nn.Module):
    """What a row of BACKBONES builds, with a BackboneConfig: images to maps of the row's strides, such as 4, 8, 16, 32.

    Attributes:
        channels: of the maps.
        multiple: images are padded to a multiple of it.
    """

    channels: tuple[int, ...]
    multiple: int = 32

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to the maps, the largest first."""
        raise NotImplementedError

    def stages(self) -> list[list[nn.Module]]:
        """Return the layers of the five stages, stem first; `trainable_stages` freezes by them."""
        raise NotImplementedError

    def load(self, weights: str) -> None:
        """Fill the body with weights.

        Args:
            weights: a name such as `imagenet` if the body knows it, or else a path.

        Raises:
            DoubleheadError: the weights cannot be fetched or read, or are of another network.
        """
        raise NotImplementedError


class Backbone(nn.Module):
    """A body and torchvision's feature pyramid: maps "0".."3" (P2..P5), or as many as the body gives, and "pool" (P6).

    Args:
        config: the body, its weights and frozen stages.
        fpn: channels and norm of the pyramid.
        pretrained: whether to fetch `config.weights`; False where a checkpoint will fill the layers.

    Attributes:
        recompute: whether training computes the body's blocks again for the gradient, to save memory.

    Raises:
        DoubleheadError: the weights cannot be fetched or read, or do not fit.
    """

    def __init__(self, config: BackboneConfig, fpn: FPNConfig, pretrained: bool) -> None:
        super().__init__()
        self.recompute = False
        self.body: Body = imported(BACKBONES[config.name].body)(config)
        if pretrained and config.weights is not None:
            self.body.load(config.weights)
        stages = self.body.stages()
        for stage in stages[: len(stages) - config.trainable_stages]:
            for layer in stage:
                layer.requires_grad_(False)
        self.fpn = FeaturePyramidNetwork(
            list(self.body.channels), fpn.channels, LastLevelMaxPool(), _pyramid_norm(config, fpn)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, 3, H, W), padded to `body.multiple`, to maps such as of strides 4, 8, 16, 32 and 64."""
        again = self.recompute and self.training and torch.is_grad_enabled()
        with recomputed(chain(*self.body.stages())) if again else nullcontext():
            maps = self.body(images)
        return self.fpn({str(i): features for i, features in enumerate(maps)})


def _pyramid_norm(config: BackboneConfig, fpn: FPNConfig) -> Any:
    name = ("group" if config.norm == "group" else "none") if fpn.norm == "auto" else fpn.norm
    return None if name == "none" else NORMS[name]


def read_file(weights: str) -> dict[str, Tensor]:
    """The weights in a file that `model.backbone.weights` names.

    Raises:
        DoubleheadError: the file is missing, damaged, or would run code.
    """
    try:
        state, _ = read_weights(Path(weights))
    except DoubleheadError as error:
        raise DoubleheadError(f"model.backbone.weights={error}") from error
    return state


def torchvisions_weights(model: str) -> dict[str, Tensor]:
    """The ImageNet weights that torchvision publishes for one of its models.

    Raises:
        DoubleheadError: they cannot be downloaded.
    """
    entry = torchvision.models.get_model_weights(model)["IMAGENET1K_V1"]
    try:
        return dict(entry.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise DoubleheadError(
            f"ImageNet weights could not be downloaded from {entry.url} ({error}); fetch that file by hand and give "
            "its path as model.backbone.weights, or set model.backbone.weights=null to train from scratch"
        ) from error


def fill(body: nn.Module, state: dict[str, Tensor], weights: str, network: str) -> None:
    """Load weights into a body, all of them; counters of batches may be missing or left over.

    Args:
        body: what to fill.
        state: weights under the body's own keys.
        weights: what `model.backbone.weights` says.
        network: what the weights are to be of.

    Raises:
        DoubleheadError: they are of another network.
    """
    wrong = f"model.backbone.weights={weights}: these are not weights of a {network}"
    state = {key: value for key, value in state.items() if not key.endswith(COUNTER)}
    try:
        missing, unexpected = body.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DoubleheadError(wrong) from error
    missing = [key for key in missing if not key.endswith(COUNTER)]
    if missing or unexpected:
        raise DoubleheadError(f"{wrong} with this norm (missing: {missing[:3]}, unexpected: {unexpected[:3]})")
